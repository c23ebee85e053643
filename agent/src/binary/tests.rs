//! On real files, where the machine has them; and on broken ones.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::decoder::Register;
use super::{Binary, Code, Function, GO_ARGUMENTS, SYSV_ARGUMENTS, Version, probe_point};

fn there(paths: &[&str]) -> Option<Binary> {
    let path = paths.iter().find(|path| Path::new(path).exists())?;
    Some(Binary::open(path).unwrap_or_else(|e| unreachable!("{path}: {e}")))
}

fn libssl() -> Option<Binary> {
    there(&["/usr/lib/x86_64-linux-gnu/libssl.so.3", "/usr/lib64/libssl.so.3"])
}

#[test]
fn exported_function_is_found_with_its_extent() {
    let Some(ssl) = libssl() else { return };
    assert!(ssl.build_id().is_some());
    let read = ssl.symbol("SSL_read");
    let read = read.unwrap_or_else(|| unreachable!("SSL_read"));
    assert_eq!(ssl.function_at(read.address), Some(read));
    assert_eq!(ssl.function_at(read.end - 1), Some(read));
    let offset = ssl.offset(read.address);
    assert_eq!(offset.and_then(|offset| ssl.address(offset)), Some(read.address));
    assert_eq!(ssl.symbol("SSL_read_not_there"), None);
}

#[test]
fn probe_points_of_a_library_stand_on_emulated_instructions() {
    let Some(ssl) = libssl() else { return };
    for name in ["SSL_read", "SSL_write", "SSL_free"] {
        let function = ssl.symbol(name).unwrap_or_else(|| unreachable!("{name}"));
        let (point, offset) = ssl
            .probe(function, SYSV_ARGUMENTS)
            .unwrap_or_else(|| unreachable!("{name}"));
        assert!(function.contains(point.address));
        assert!(ssl.code(function).is_some_and(|code| code.begins(point.address)));
        assert_eq!(ssl.address(offset), Some(point.address));
    }
}

fn point(bytes: &[u8]) -> (u64, bool, u32) {
    let point = probe_point(&Code::new(0x1000, bytes), SYSV_ARGUMENTS).unwrap_or_else(|| unreachable!());
    (point.address, point.cheap, point.pushed)
}

#[test]
fn probe_stands_after_endbr_and_not_after_a_changed_argument() {
    // endbr64; push rbp
    assert_eq!(point(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0xc3]), (0x1004, true, 0));
    // endbr64; sub rsp, 8; call
    let code = [0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x83, 0xec, 0x08, 0xe8, 0, 0, 0, 0, 0xc3];
    assert_eq!(point(&code), (0x1008, true, 8));
    // xor edi, edi; push rbp
    assert_eq!(point(&[0x31, 0xff, 0x55, 0xc3]), (0x1000, false, 0));
    // mov rbp, rdi; push rbx; jmp to the push: passed more than once
    assert_eq!(point(&[0x48, 0x89, 0xfd, 0x53, 0xeb, 0xfd]), (0x1000, false, 0));
}

#[test]
fn probe_of_a_go_function_stands_after_the_check_of_the_stack() {
    let code = [
        0x49, 0x3b, 0x66, 0x10, // cmp rsp, [r14+16]
        0x76, 0x05, // jbe to the end
        0x55, // push rbp
        0x48, 0x89, 0xe5, // mov rbp, rsp
        0xc3, // ret
        0xe8, 0, 0, 0, 0, // call runtime.morestack
        0xeb, 0xee, // jmp to the entry
    ];
    let point = probe_point(&Code::new(0x1000, &code), GO_ARGUMENTS);
    assert_eq!(point.map(|p| (p.address, p.cheap)), Some((0x1006, true)));
    assert_eq!(Code::new(0x1000, &code).returns(), [0x100a]);
}

fn go_program(folder: &Path, arguments: &[&str]) -> Option<PathBuf> {
    std::fs::write(folder.join("go.mod"), "module sample\n\ngo 1.21\n").ok()?;
    std::fs::write(
        folder.join("main.go"),
        "package main\n\nimport \"fmt\"\n\n//go:noinline\nfunc Pay(n int) int { return n * 2 }\n\nfunc main() {\n\tfmt.Println(Pay(21))\n}\n",
    )
    .ok()?;
    let built = Command::new("go")
        .args(["build", "-o", "sample"])
        .args(arguments)
        .arg(".")
        .current_dir(folder)
        .env("GOFLAGS", "-mod=mod")
        .output()
        .ok()?;
    built.status.success().then(|| folder.join("sample"))
}

#[test]
fn functions_of_a_stripped_go_program_are_those_of_the_whole_one() {
    let folder = tempfile::tempdir().unwrap_or_else(|e| unreachable!("{e}"));
    let Some(path) = go_program(folder.path(), &[]) else {
        return;
    };
    let whole = Binary::open(&path).unwrap_or_else(|e| unreachable!("{e}"));
    let truth: Vec<_> = ["main.main", "main.Pay", "runtime.newproc1", "runtime.mallocgc"]
        .iter()
        .map(|name| (*name, whole.symbol(name).map(|f| f.address)))
        .collect();
    for arguments in [["-ldflags=-s -w", "-trimpath"], ["-ldflags=-s -w", "-buildmode=pie"]] {
        let Some(path) = go_program(folder.path(), &arguments) else {
            continue;
        };
        let stripped = Binary::open(&path).unwrap_or_else(|e| unreachable!("{e}"));
        let go = stripped.go().unwrap_or_else(|| unreachable!("{arguments:?}"));
        assert!(go.version >= Version::parse("go1.16"), "{arguments:?} {:?}", go.version);
        for (name, address) in &truth {
            let function = go
                .function(name)
                .unwrap_or_else(|| unreachable!("{name} {arguments:?}"));
            if arguments[1] == "-trimpath" {
                assert_eq!(Some(function.address), *address, "{name}");
            }
            let (point, _) = stripped
                .probe(function, GO_ARGUMENTS)
                .unwrap_or_else(|| unreachable!("{name}"));
            assert!(function.contains(point.address), "{name} {point:x?}");
            // A leaf without a frame of its own has no `push` to stand on.
            assert!(point.cheap || *name == "main.Pay", "{name} {point:x?}");
            assert!(
                stripped
                    .code(function)
                    .is_some_and(|code| !code.returns().is_empty() || *name == "main.main")
            );
        }
        assert_eq!(go.function("main.main1"), None);
    }
}

#[test]
fn symbols_of_node_are_found_by_their_source_names() {
    let Some(node) = there(&["/usr/bin/node", "/usr/local/bin/node"]) else {
        return;
    };
    assert!(node.symbol("nghttp2_submit_request").is_some());
    let scopes = node.demangled("InternalCallbackScope", |name| {
        name.starts_with("node::InternalCallbackScope::InternalCallbackScope(node::Environment*")
    });
    assert!(!scopes.is_empty());
}

#[test]
fn rust_functions_are_found_without_their_hash() {
    let own = Binary::open("/proc/self/exe").unwrap_or_else(|e| unreachable!("{e}"));
    let found = own.demangled("probe_point", |name| name == "tracewire::binary::probe::probe_point");
    assert_eq!(found.len(), 1, "{found:?}");
}

/// A program that uses a string, stripped: found by the string, confirmed by its frame.
#[test]
fn function_is_found_by_a_string_and_a_class_by_its_type_information() {
    let folder = tempfile::tempdir().unwrap_or_else(|e| unreachable!("{e}"));
    let source = folder.path().join("a.cc");
    std::fs::write(
        &source,
        "#include <cstdio>\nstruct Base { virtual int first(int) = 0; virtual ~Base() {} };\nstruct Transport final : Base {\n int first(int n) override { return printf(\"perform_first[%d]\\n\", n); }\n ~Transport() override { printf(\"gone\\n\"); } };\n__attribute__((noinline)) Base* make() { return new Transport(); }\nint main(int n, char**) { Base* b = make(); b->first(n); delete b; }\n",
    )
    .unwrap_or_else(|e| unreachable!("{e}"));
    for extra in ["-pie", "-no-pie"] {
        let out = folder.path().join(extra);
        let built = Command::new("c++")
            .args(["-O1", "-fno-devirtualize", extra, "-fPIE", "-o"])
            .args([&out, &source])
            .output();
        let Ok(built) = built else { return };
        assert!(built.status.success());
        let whole = Binary::open(&out).unwrap_or_else(|e| unreachable!("{e}"));
        let truth = whole.symbol("_ZN9Transport5firstEi").map(|f| f.address);
        let stripped = Command::new("strip").arg(&out).status();
        if !stripped.is_ok_and(|status| status.success()) {
            return;
        }
        let binary = Binary::open(&out).unwrap_or_else(|e| unreachable!("{e}"));
        let found = binary.functions_using(&[b"perform_first[", b"erform_first["]);
        assert_eq!(
            found[0].iter().map(|f| Some(f.address)).collect::<Vec<_>>(),
            [truth],
            "{extra}"
        );
        assert!(found[1].is_empty());
        let table = binary.virtual_functions("9Transport").unwrap_or_default();
        assert_eq!(table.first().copied(), truth, "{extra}");
        assert_eq!(table.len(), 3);
        assert_eq!(binary.virtual_functions("9Transpor"), None);
    }
}

/// Everything that reads a file, on files that are cut and changed at many places.
#[test]
fn broken_files_are_refused_or_read_without_a_panic() {
    let Some(ssl) = libssl() else { return };
    let whole = ssl.bytes().to_vec();
    let headers = whole.len().min(4096);
    for round in 0..400usize {
        let mut bytes = whole.clone();
        if round % 4 == 0 {
            bytes.truncate(whole.len() * round / 400);
        }
        for change in 0..8usize {
            let at = round.wrapping_mul(7919).wrapping_add(change.wrapping_mul(104_729));
            // The headers at both ends of the file are changed more often than the rest.
            let at = match change % 3 {
                0 => at % headers,
                1 => bytes.len().saturating_sub(1 + at % headers),
                _ => at % bytes.len().max(1),
            };
            if let Some(byte) = bytes.get_mut(at) {
                *byte = byte.wrapping_add((round as u8) | 1);
            }
        }
        let Ok(binary) = Binary::from_bytes(bytes) else {
            continue;
        };
        let _ = binary.go().map(|go| go.functions().count());
        if let Some(function) = binary.symbol("SSL_read") {
            let _ = binary.probe(function, SYSV_ARGUMENTS);
            let _ = binary.code(function).map(|code| (code.calls(), code.returns()));
        }
        if round % 16 == 0 {
            let _ = binary.functions_using(&[b"ssl/"]);
            let _ = binary.virtual_functions("9Transport");
        }
        let _ = binary.function_at(0x2_0000);
        let _ = binary.code(Function {
            address: 0x2_0000,
            end: u64::MAX,
        });
    }
}

#[test]
fn a_branch_behind_a_call_is_taken_only_while_the_result_is_there() {
    let branch = |bytes: &[u8]| Code::new(0x1000, bytes).branch_after(0x1000, &[Register::RAX]);
    // call; mov rbp, rdx; cmp rax, 1; je
    let call = [0xe8, 0, 0, 0, 0];
    let compared = [0x48, 0x89, 0xd5, 0x48, 0x83, 0xf8, 0x01, 0x74, 0x00];
    assert_eq!(branch(&[&call[..], &compared].concat()), Some(0x100c));
    // xor eax, eax before it
    assert_eq!(branch(&[&call[..], &[0x31, 0xc0], &compared].concat()), None);
    // another call before it
    assert_eq!(branch(&[&call[..], &call, &compared].concat()), None);
}
