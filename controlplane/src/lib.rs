//! Kubernetes objects to the model: manifest source, allocation, feed.
