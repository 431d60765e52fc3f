//! Network namespaces and rtnetlink verbs, as one would say them with ip(8).
