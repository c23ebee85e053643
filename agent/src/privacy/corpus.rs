//! Secrets as people let them slip into paths, messages and header fields.
//! Every test of what leaves the agent sends these. All are made up.

/// What has a form of its own: hidden wherever it stands.
pub const EXACT: &[&str] = &[
    "alice.smith@example.com",
    "bob+tag@mail.example.co.uk",
    "jürgen@exämple.de",
    "4111111111111111",
    "4111-1111-1111-1111",
    "378282246310005",
    "5555555555554444",
    "AKIAIOSFODNN7EXAMPLE",
    "ASIAY34FZKBOKMUTVV7A",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz0123456789",
    "glpat-Zx9yWv8uTs7rQp6oNm5l",
    "xoxb-17653672481-19874698323-pdFZKVeTuE8sk7oOcHrzqqgy",
    "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
    "whsec_5f2Vx9Lk3Qm8Rt1Yb7Nz4Wc6",
    "AIzaSyDaGmWKa4JsXZ-HjGw7ISLn_3namBGewQe",
    "ya29.a0AfH6SMBx3kQ9vL2mZ7tR5yW8nP",
    "SG.ngeVfQFYQlKU0ufo8x5d1A.TwL2iGABf9DHoTf09kqeF8tAmbihYzrnopKc1s5cr",
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "npm_aBcDeFgHiJkLmNoPqRsTuVwXyZ0123456789",
    "hvs.CAESIJ7mQ2xw9Kd4Lz8Np3Rt6Vb1Yc5",
];

/// What only looks drawn at random: hidden in paths and in free text.
pub const DRAWN: &[&str] = &[
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "d41d8cd98f00b204e9800998ecf8427e",
    "q7Zk2Lx9Vb4Nn8Rt1Yw6",
    "Jx4Kq8Tz2Rm9Wv5Bn3Lc7",
];

/// A text, and the secret in it.
pub const PHRASES: &[(&str, &str)] = &[
    ("login failed: password=hunter2hunter", "hunter2hunter"),
    ("config {\"api_key\": \"topsecretvalue\"}", "topsecretvalue"),
    ("secret: correct horse", "correct"),
    ("passphrase='correct horse battery'", "correct horse battery"),
    ("Authorization: Bearer abcdef012345", "abcdef012345"),
    ("rejected Bearer mF_9.B5f-4.1JqM", "mF_9.B5f-4.1JqM"),
    ("rejected Basic QWxhZGRpbjpvcGVu", "QWxhZGRpbjpvcGVu"),
    ("dial postgres://app:hunter2@db:5432/main: refused", "hunter2"),
    ("dial amqp://me:p@ss@mq: refused", "p@ss"),
    ("no user <carol@example.org>", "carol@example.org"),
    ("cookie: sid=topsecretvalue; x", "topsecretvalue"),
    ("card 4111 1111 1111 1111 declined", "4111 1111 1111 1111"),
    ("session_id=topsecretvalue expired", "topsecretvalue"),
    ("access_key => topsecretvalue", "topsecretvalue"),
    (
        "key -----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkq\n-----END PRIVATE KEY----- bad",
        "MIIEvQIBADANBgkq",
    ),
    ("mailto%3Adave%40example.com", "dave%40example.com"),
    ("client_secret%3Dtopsecretvalue", "topsecretvalue"),
];

/// Texts in which nothing is to hide.
pub const HARMLESS: &[&str] = &[
    "",
    "not found",
    "shop.v1.Cart/AddItemToCart",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "com.example.InvalidArgumentException: quantity must be positive",
    "no route to host 10.0.0.17:50051",
    "order 018f3f5e-7c3a-7b60-b0a4-2f9f7a1f3c55 does not exist",
    "timeout after 1500ms at 2024-05-17T10:00:00.123Z",
    "connection to payments-7f9c4d6b8-x2x9z refused",
    "unix time 1716000000000 is in the past",
    "user 42 has 17 items",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36",
    "grpc-java-netty/1.64.0",
    "python-requests/2.31.0",
    "node_modules/@scope/package@1.2.3",
    "bearer token expired",
    "basic authentication required",
    "desk-top, disk-full, task-sk-ipped",
    "the password is wrong",
    "/usr/lib/x86_64-linux-gnu/libpthread.so.0: cannot open shared object file",
    "HTTP status 503",
];
