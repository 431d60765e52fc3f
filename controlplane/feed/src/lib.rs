//! The feed from the control plane to the nodes: wire types, server, client, snapshot on disk.
