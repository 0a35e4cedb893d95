"""The roles in one process, without Ray and vLLM: for a debugger, never the default of a command."""
