//! Dynamo's KServe server over gRPC, with Wardrop's decision in its completions.
//!
//! As in Dynamo, it takes the place of the HTTP server. A port of its own serves metrics of Dynamo; those of Wardrop are on the admin API.

use std::sync::Arc;

use dynamo_llm::grpc::service::kserve::KserveService;
use dynamo_llm::local_model::LocalModel;
use dynamo_runtime::DistributedRuntime;
use wardrop_service::Service;

use crate::settings::Settings;
use crate::watching::{Server, watch_models};

/// Serves until the runtime shuts down.
///
/// # Errors
/// A port that cannot be bound, or no discovery.
pub async fn serve(
    runtime: &DistributedRuntime,
    local_model: &LocalModel,
    settings: &Settings,
    service: &Arc<Service>,
) -> anyhow::Result<()> {
    let token = runtime.primary_token();
    let mut builder = KserveService::builder()
        .port(local_model.http_port())
        .metrics_prefix(local_model.metrics_prefix())
        .http_cancel_token(Some(token.clone()))
        .with_request_template(local_model.request_template());
    if let Some(port) = settings.frontend.grpc_metrics_port {
        builder = builder.http_metrics_port(port);
    }
    let grpc = builder.build()?;
    let server = Server {
        manager: grpc.state().manager_clone(),
        metrics: grpc.state().metrics_clone(),
        http: None,
    };
    watch_models(runtime, local_model, settings, service, server).await?;
    let metrics = grpc.http_service().clone();
    tokio::try_join!(grpc.run(token.clone()), metrics.run(token))?;
    Ok(())
}
