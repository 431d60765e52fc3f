//! From the model to table entries, and from table entries back to names.
