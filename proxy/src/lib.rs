//! The node agent: reconciles kernel tables, attachments, routes and tunnels with the model.
