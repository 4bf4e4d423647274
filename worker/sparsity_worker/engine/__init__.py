"""SGLang's engine in this process, its proof and its reports."""
