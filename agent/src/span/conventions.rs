//! Attribute names of the semantic conventions 1.45 and the choices they
//! leave to a user. Names only: the rules stand in `rpc` and `http`. Own attributes start with `tracewire.` and say what the
//! conventions have no word for, above all what could *not* be seen.

use std::sync::Arc;

/// Schema of every span and resource.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.45.0";

/// Attribute keys.
pub mod key {
    #![expect(missing_docs, reason = "each constant is the name it holds")]
    pub const CLIENT_ADDRESS: &str = "client.address";
    pub const ERROR_TYPE: &str = "error.type";
    pub const HTTP_REQUEST_METHOD: &str = "http.request.method";
    pub const HTTP_REQUEST_METHOD_ORIGINAL: &str = "http.request.method_original";
    pub const DEPLOYMENT_ENVIRONMENT_NAME: &str = crate::discover::ENVIRONMENT;
    pub const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
    pub const HTTP_ROUTE: &str = "http.route";
    pub const NETWORK_PEER_ADDRESS: &str = "network.peer.address";
    pub const NETWORK_PEER_PORT: &str = "network.peer.port";
    pub const NETWORK_PROTOCOL_VERSION: &str = "network.protocol.version";
    pub const NETWORK_TRANSPORT: &str = "network.transport";
    pub const RPC_METHOD: &str = "rpc.method";
    pub const RPC_METHOD_ORIGINAL: &str = "rpc.method_original";
    pub const RPC_STATUS_CODE: &str = "rpc.status_code";
    pub const RPC_SYSTEM_NAME: &str = "rpc.system.name";
    pub const SERVER_ADDRESS: &str = "server.address";
    pub const SERVER_PORT: &str = "server.port";
    pub const URL_FULL: &str = "url.full";
    pub const URL_PATH: &str = "url.path";
    pub const URL_QUERY: &str = "url.query";
    pub const URL_SCHEME: &str = "url.scheme";
    pub const URL_TEMPLATE: &str = "url.template";
    pub const USER_AGENT_ORIGINAL: &str = "user_agent.original";

    /// Before 1.39, for [`super::Conventions::rpc_dup`].
    pub const OLD_RPC_SYSTEM: &str = "rpc.system";
    /// Before 1.39, for [`super::Conventions::rpc_dup`].
    pub const OLD_RPC_SERVICE: &str = "rpc.service";
    /// Before 1.39, for [`super::Conventions::rpc_dup`].
    pub const OLD_RPC_GRPC_STATUS_CODE: &str = "rpc.grpc.status_code";

    /// Names of the attributes that belong here and could not be read on the wire.
    pub const UNSEEN: &str = "tracewire.unseen";
    /// `ambiguous`: several requests that the process served could be the parent, so none is said to be.
    pub const PARENT: &str = "tracewire.parent";
    /// True where the agent stopped observing before the end: the duration is a lower bound.
    pub const UNFINISHED: &str = "tracewire.unfinished";
    /// True where the client gave the exchange up, which the HTTP conventions do not call an error.
    pub const CANCELLED: &str = "tracewire.cancelled";
    /// Why a span that the sampler did not choose is there: `error` or `slow`. It stands for
    /// itself alone.
    pub const SAMPLING_REASON: &str = "tracewire.sampling.reason";
    /// gRPC messages of the request.
    pub const REQUEST_MESSAGES: &str = "tracewire.request.messages";
    /// Their bytes, prefixes not counted.
    pub const REQUEST_BYTES: &str = "tracewire.request.bytes";
    /// gRPC messages of the response.
    pub const RESPONSE_MESSAGES: &str = "tracewire.response.messages";
    /// Their bytes, prefixes not counted.
    pub const RESPONSE_BYTES: &str = "tracewire.response.bytes";
}

/// Beginnings of attribute keys whose end is a name of the user's.
pub mod prefix {
    #![expect(missing_docs, reason = "each constant is the name it holds")]
    pub const HTTP_REQUEST_HEADER: &str = "http.request.header.";
    pub const HTTP_RESPONSE_HEADER: &str = "http.response.header.";
    pub const RPC_REQUEST_METADATA: &str = "rpc.request.metadata.";
    pub const RPC_RESPONSE_METADATA: &str = "rpc.response.metadata.";
    /// Value of one parameter of the route.
    pub const URL_PATH_PARAM: &str = "url.path_param.";
}

/// What stands for a method or an error that has no known name.
pub const OTHER: &str = "_OTHER";

/// Methods known without configuration: RFC 9110 §9.3, PATCH (RFC 5789) and QUERY.
pub const HTTP_METHODS: [&str; 10] = [
    "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "QUERY", "CONNECT", "TRACE",
];

/// Choices that the conventions leave open.
#[derive(Clone, Debug)]
pub struct Conventions {
    /// `OTEL_SEMCONV_STABILITY_OPT_IN=rpc/dup`: also `rpc.system`,
    /// `rpc.service` and `rpc.grpc.status_code`, for backends that do not
    /// know the stable names yet.
    pub rpc_dup: bool,
    /// HTTP methods that are named as they are, case-sensitive.
    pub http_methods: Vec<Arc<str>>,
    /// RPC methods known to be registered, `pkg.Service/Method` or `pkg.Service/*`.
    pub rpc_methods: Vec<String>,
}

impl Default for Conventions {
    fn default() -> Self {
        Conventions {
            rpc_dup: false,
            http_methods: HTTP_METHODS.iter().map(|m| Arc::from(*m)).collect(),
            rpc_methods: Vec::new(),
        }
    }
}

impl Conventions {
    /// Takes `OTEL_SEMCONV_STABILITY_OPT_IN`, a comma-separated list of which
    /// only `rpc/dup` means anything here.
    pub fn opt_in(&mut self, list: &str) {
        self.rpc_dup = list.split(',').any(|word| word.trim() == "rpc/dup");
    }

    /// Takes `OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS`, a comma-separated
    /// list that replaces the known methods; empty means unset.
    pub fn known_methods(&mut self, list: &str) {
        let methods: Vec<Arc<str>> = list
            .split(',')
            .map(str::trim)
            .filter(|m| !m.is_empty())
            .map(Arc::from)
            .collect();
        if !methods.is_empty() {
            self.http_methods = methods;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opt_in_is_a_list() {
        let mut conventions = Conventions::default();
        conventions.opt_in("http, rpc/dup");
        assert!(conventions.rpc_dup);
        conventions.opt_in("rpc,http/dup");
        assert!(!conventions.rpc_dup);
    }

    #[test]
    fn known_methods_are_replaced_not_added_to() {
        let mut conventions = Conventions::default();
        conventions.known_methods(" ");
        assert_eq!(conventions.http_methods.len(), HTTP_METHODS.len());
        conventions.known_methods("GET, PROPFIND");
        assert_eq!(
            conventions.http_methods.iter().map(|m| &**m).collect::<Vec<_>>(),
            ["GET", "PROPFIND"]
        );
    }
}
