module tracewire.test/relay-http

go 1.24.0
