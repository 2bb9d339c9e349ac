// Files that were put into the program when it was built. Inside report only.
#pragma once

#include <string_view>

namespace flexkv::trace {

std::string_view PageFrame();     // page.html
std::string_view PageStyle();     // page.css
std::string_view PageScript();    // page.js
std::string_view ChartLibrary();  // Chart.js, MIT licence (its notice stands at its beginning)

}  // namespace flexkv::trace
