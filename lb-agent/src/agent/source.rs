//! The source at work.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use kube::Client;
use lb_core::model::Change;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{
    config::{Config, Source},
    sources::{self, BACKLOG, Changes, Standstill, Wait, dir, local::Local},
};

/// What follows the source.
pub(super) struct Feed {
    /// Ends only when it cannot go on.
    pub(super) task: JoinHandle<Result<()>>,
    /// What it says.
    pub(super) changes: mpsc::Receiver<Change>,
    /// Why nothing is followed at the moment.
    pub(super) trouble: watch::Receiver<Option<Standstill>>,
    /// What the first sync waits for.
    pub(super) waits: watch::Receiver<BTreeMap<&'static str, Wait>>,
    /// The API server, if that is the source.
    pub(super) client: Option<Client>,
}

/// Starts to follow. `in_force`: the maps have entries already. `once`: nobody waits for a directory
/// that cannot be read.
pub(super) async fn follow(config: &Config, in_force: bool, once: bool) -> Result<Feed> {
    let (sender, changes): (Changes, _) = mpsc::channel(BACKLOG);
    let local = Local::start(&sender).await?;
    tokio::spawn(local.run(sender.clone()));
    let proxy_name = config.service_proxy_name.clone();
    let (tell, trouble) = watch::channel(None);
    let (tell_waits, waits) = watch::channel(BTreeMap::new());
    Ok(match &config.source {
        Source::Dir(path) => {
            let terms = dir::Terms { in_force, once, proxy_name, waits: tell_waits };
            let run = dir::run(path.clone(), terms, sender, tell);
            Feed { task: tokio::spawn(run), changes, trouble, waits, client: None }
        }
        Source::Kubernetes => {
            let access = sources::kubernetes::ApiAccess {
                kubeconfig: config.kubeconfig.clone(),
                context: config.context.clone(),
            };
            // A credential plugin keeps its thread waiting.
            let runtime = tokio::runtime::Handle::current();
            let server = tokio::task::spawn_blocking(move || runtime.block_on(access.server()))
                .await
                .context("the API access failed")??;
            let client = server.client.clone();
            let task = tokio::spawn(async move {
                let name = proxy_name.as_deref();
                Box::pin(sources::kubernetes::run(server, name, sender, tell_waits)).await;
                Ok(())
            });
            Feed { task, changes, trouble, waits, client: Some(client) }
        }
    })
}
