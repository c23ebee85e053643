// An ordinary HTTP service and its client: net/http, HTTP/2 without TLS, and
// the three protocols of connect-go. The client begins after a line on standard
// input, and writes one JSON line per request to --log.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/h2c"
	"golang.org/x/net/websocket"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

var piece = bytes.Repeat([]byte("x"), 100)

const (
	unary  = "/web.v1.Echo/Unary"
	stream = "/web.v1.Echo/Stream"
)

type text = wrapperspb.StringValue

// --- server ---------------------------------------------------------------

func pieces(w http.ResponseWriter, kind string, count int, pause time.Duration) {
	w.Header().Set("Content-Type", kind)
	for n := range count {
		time.Sleep(pause)
		fmt.Fprintf(w, "data: %d\n\n", n)
		w.(http.Flusher).Flush()
	}
}

func plain(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost || r.Method == http.MethodPut {
		length, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintln(w, length)
		return
	}
	switch r.URL.Path {
	case "/length":
		w.Write(bytes.Repeat(piece, 30))
	case "/chunked":
		pieces(w, "text/plain", 4, 0)
	case "/events":
		pieces(w, "text/event-stream", 4, 50*time.Millisecond)
	case "/close":
		w.Header().Set("Connection", "close")
		w.Write(piece)
	default:
		status, _ := strconv.Atoi(strings.Trim(r.URL.Path, "/"))
		w.WriteHeader(status)
		io.WriteString(w, "no\n")
	}
}

// wish ends a call as its request asks: "" well, else with the code of that name.
func wish(message string) error {
	if message == "not_found" {
		return connect.NewError(connect.CodeNotFound, fmt.Errorf("nothing there"))
	}
	return nil
}

func serve(listen string) {
	mux := http.NewServeMux()
	mux.HandleFunc("/", plain)
	// A server without a handshake of its own takes clients that name no origin.
	mux.Handle("/ws", websocket.Server{Handler: func(c *websocket.Conn) { io.Copy(c, c) }})
	mux.Handle(unary, connect.NewUnaryHandler(unary,
		func(_ context.Context, r *connect.Request[text]) (*connect.Response[text], error) {
			return connect.NewResponse(r.Msg), wish(r.Msg.Value)
		}))
	mux.Handle(stream, connect.NewServerStreamHandler(stream,
		func(_ context.Context, r *connect.Request[text], out *connect.ServerStream[text]) error {
			for range 3 {
				time.Sleep(10 * time.Millisecond)
				if err := out.Send(r.Msg); err != nil {
					return err
				}
			}
			return wish(r.Msg.Value)
		}))
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening")
	server := &http.Server{Handler: h2c.NewHandler(mux, &http2.Server{})}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() { <-stop; os.Exit(0) }()
	log.Fatal(server.Serve(listener))
}

// --- client ---------------------------------------------------------------

type record struct {
	ID       string `json:"id"`
	Protocol string `json:"protocol"`
	Method   string `json:"method"`
	Path     string `json:"path"`
	Version  string `json:"version"`
	Least    int64  `json:"least_ns"`
	Start    int64  `json:"start_ns"`
	End      int64  `json:"end_ns"`
	Status   int    `json:"status"`
	Code     string `json:"code,omitempty"`
}

type client struct {
	base string
	log  *os.File
	n    int
}

func (c *client) begin(protocol, method, path, version string) *record {
	c.n++
	id := fmt.Sprintf("go-%d-%d", c.n, os.Getpid())
	return &record{ID: id, Protocol: protocol, Method: method, Path: path, Version: version, Start: time.Now().UnixNano()}
}

func (c *client) end(r *record) {
	r.End = time.Now().UnixNano()
	line, _ := json.Marshal(r)
	c.log.Write(append(line, '\n'))
}

func (c *client) request(h *http.Client, version, method, path string, body io.Reader, least time.Duration) {
	r := c.begin("http", method, path, version)
	r.Least = least.Nanoseconds()
	request, err := http.NewRequest(method, c.base+path, body)
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("x-call-id", r.ID)
	response, err := h.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	io.Copy(io.Discard, response.Body)
	response.Body.Close()
	r.Status = response.StatusCode
	c.end(r)
}

// unsized hides how long a body is, so that it goes in chunks.
type unsized struct{ io.Reader }

func (c *client) plain(h *http.Client, version string) {
	for range 3 {
		c.request(h, version, "GET", "/length", nil, 0)
		c.request(h, version, "HEAD", "/length", nil, 0)
		c.request(h, version, "GET", "/chunked", nil, 0)
		c.request(h, version, "POST", "/echo", bytes.NewReader(make([]byte, 200_000)), 0)
		c.request(h, version, "PUT", "/echo", unsized{bytes.NewReader(make([]byte, 30_000))}, 0)
		c.request(h, version, "GET", "/404", nil, 0)
		c.request(h, version, "GET", "/500", nil, 0)
	}
	c.request(h, version, "GET", "/events", nil, 200*time.Millisecond)
	if version == "1.1" {
		c.request(h, version, "GET", "/close", nil, 0)
	}
}

// rpc makes good and failing calls in one of connect-go's protocols.
func (c *client) rpc(h *http.Client, protocol, version string, options ...connect.ClientOption) {
	call := connect.NewClient[text, text](h, c.base+unary, options...)
	many := connect.NewClient[text, text](h, c.base+stream, options...)
	name := func(err error) string {
		if err == nil {
			return "OK"
		}
		return strings.ToUpper(connect.CodeOf(err).String())
	}
	for _, message := range []string{"", "", "not_found"} {
		r := c.begin(protocol, "POST", unary, version)
		request := connect.NewRequest(&text{Value: message})
		request.Header().Set("x-call-id", r.ID)
		_, err := call.CallUnary(context.Background(), request)
		r.Code = name(err)
		c.end(r)

		kind := protocol
		if kind == "connect" {
			kind = "connect-stream"
		}
		r = c.begin(kind, "POST", stream, version)
		r.Least = (30 * time.Millisecond).Nanoseconds()
		request = connect.NewRequest(&text{Value: message})
		request.Header().Set("x-call-id", r.ID)
		answers, err := many.CallServerStream(context.Background(), request)
		if err == nil {
			for answers.Receive() {
			}
			err = answers.Err()
			answers.Close()
		}
		r.Code = name(err)
		c.end(r)
	}
}

func run(target, features, path string) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		log.Fatal(err)
	}
	c := &client{base: "http://" + target, log: file}
	http1 := &http.Client{Transport: &http.Transport{}}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	http2 := &http.Client{Transport: &http.Transport{Protocols: protocols}}
	for _, feature := range strings.Split(features, ",") {
		switch feature {
		case "http1":
			c.plain(http1, "1.1")
		case "h2c":
			c.plain(http2, "2")
		case "connect":
			c.rpc(http1, "connect", "1.1")
			c.rpc(http2, "connect", "2")
			c.rpc(http1, "grpc-web", "1.1", connect.WithGRPCWeb())
			c.rpc(http2, "grpc-web", "2", connect.WithGRPCWeb(), connect.WithAcceptCompression("gzip", nil, nil))
			c.rpc(http2, "grpc-web-gzip", "2", connect.WithGRPCWeb())
			c.rpc(http2, "grpc", "2", connect.WithGRPC())
		}
	}
}

func main() {
	side := ""
	if len(os.Args) > 1 {
		side = os.Args[1]
	}
	flags := flag.NewFlagSet(side, flag.ExitOnError)
	listen := flags.String("listen", "", "127.0.0.1:PORT")
	target := flags.String("target", "", "127.0.0.1:PORT")
	features := flags.String("features", "", "http1,h2c,connect")
	path := flags.String("log", "", "file to append one JSON line per request to")
	flags.Parse(os.Args[2:])
	switch side {
	case "server":
		serve(*listen)
	case "client":
		bufio.NewReader(os.Stdin).ReadString('\n')
		run(*target, *features, *path)
	default:
		log.Fatal("usage: run server --listen ADDR | client --target ADDR --features LIST --log FILE")
	}
}
