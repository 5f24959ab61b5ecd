//! Services and EndpointSlices from a directory of YAML and JSON files.
