//! Services and EndpointSlices from a directory of YAML and JSON files.

/// To be replaced in a moment by its author.
pub async fn run(path: std::path::PathBuf, _: super::Changes) -> anyhow::Result<()> {
    anyhow::bail!("{} is not read yet", path.display())
}
