#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "flexkv/server/status_text.h"

namespace flexkv {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using Json = nlohmann::ordered_json;

Json ToJson(const Message& message);

Json Value(const Message& message, const FieldDescriptor* field) {
  const google::protobuf::Reflection* fields = message.GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_UINT64:
      return fields->GetUInt64(message, field);
    case FieldDescriptor::CPPTYPE_INT64:
      return fields->GetInt64(message, field);
    case FieldDescriptor::CPPTYPE_UINT32:
      return fields->GetUInt32(message, field);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return fields->GetDouble(message, field);
    case FieldDescriptor::CPPTYPE_BOOL:
      return fields->GetBool(message, field);
    case FieldDescriptor::CPPTYPE_STRING:
      return fields->GetString(message, field);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return ToJson(fields->GetMessage(message, field));
    default:
      return nullptr;  // admin.proto uses no other types
  }
}

Json ToJson(const Message& message) {
  Json json = Json::object();
  const google::protobuf::Descriptor* type = message.GetDescriptor();
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    if (!field->is_repeated()) {
      json[field->name()] = Value(message, field);
      continue;
    }
    Json list = Json::array();  // only messages are repeated in admin.proto
    for (int k = 0; k < message.GetReflection()->FieldSize(message, field); ++k) {
      list.push_back(ToJson(message.GetReflection()->GetRepeatedMessage(message, field, k)));
    }
    json[field->name()] = std::move(list);
  }
  return json;
}

}  // namespace

std::string StatusJson(const admin::v1::StatusReply& status) {
  Json json = ToJson(status);
  json["boot_id"] = absl::StrFormat("%016x", status.boot_id());
  return json.dump(2, ' ', true, Json::error_handler_t::replace);
}

}  // namespace flexkv
