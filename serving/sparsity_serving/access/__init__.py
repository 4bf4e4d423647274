"""Who may call, and do what: principals by key or token, and their roles."""
