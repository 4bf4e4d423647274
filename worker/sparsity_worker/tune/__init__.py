"""From which length a tier's sparse attention is faster than dense on this device: measured, kept, applied."""
