"""The workers: found, watched, picked, queued for; and the routers beside this one."""
