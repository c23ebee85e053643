//! What this kernel, these privileges and this lockdown allow.
