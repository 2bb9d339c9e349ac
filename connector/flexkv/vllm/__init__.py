"""The connector that vLLM loads by kv_connector_module_path, `flexkv.vllm.connector`."""
