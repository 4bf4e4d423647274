"""The router under load, beside other routers."""
