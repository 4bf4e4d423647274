"""Definitions, as plain as they can be, that every implementation is held to."""
