// An ordinary gRPC service and its client. Both sides write one JSON line per
// call to --log.
package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base32"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"tracewire.test/exercise/pb"
)

const (
	lang        = "go"
	mib         = 1 << 20
	maxMessage  = 64 * mib
	maxMetadata = 64 << 10
)

var codeNames = [...]string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED",
	"NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED",
	"FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
	"INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}

// --- log ------------------------------------------------------------------

type record struct {
	Side     string `json:"side"`
	ID       string `json:"id"`
	Method   string `json:"method"`
	Code     string `json:"code"`
	Message  string `json:"message"`
	Start    int64  `json:"start_ns"`
	End      int64  `json:"end_ns"`
	Sent     int    `json:"sent"`
	Received int    `json:"received"`
	// Values of traceparent that the server got, joined.
	TraceParent string `json:"traceparent"`
}

func begin(side, id, method string) *record {
	return &record{Side: side, ID: id, Method: strings.TrimPrefix(method, "/"), Start: time.Now().UnixNano()}
}

type callLog struct{ file *os.File }

func openLog(path string) *callLog {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		log.Fatal(err)
	}
	return &callLog{file}
}

// finish writes the whole line with one write to a file opened for appending.
func (l *callLog) finish(r *record, err error) {
	r.End = time.Now().UnixNano()
	s := status.Convert(err)
	r.Code, r.Message = codeNames[s.Code()], s.Message()
	if errors.As(err, &errGivenUp{}) {
		r.Code, r.Message = "CANCELLED", ""
	}
	line, err := json.Marshal(r)
	if err == nil {
		_, err = l.file.Write(append(line, '\n'))
	}
	if err != nil {
		log.Fatal(err)
	}
}

// --- server ---------------------------------------------------------------

type service struct {
	pb.UnimplementedExerciseServer
}

// pause waits, unless the call ends before.
func pause(ctx context.Context, ms int32) error {
	if ms > 0 {
		select {
		case <-time.After(time.Duration(ms) * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return ended(ctx, nil)
}

// errGivenUp is a call that ended before its handler did. The log says
// CANCELLED, gRPC is told the cause.
type errGivenUp struct{ cause error }

func (e errGivenUp) Error() string              { return e.cause.Error() }
func (e errGivenUp) GRPCStatus() *status.Status { return status.FromContextError(e.cause) }

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errGivenUp{ctx.Err()}
	}
	return err
}

func answer(ask *pb.Ask, n int) *pb.Answer {
	return &pb.Answer{Id: ask.GetId(), N: int32(n), Payload: make([]byte, ask.GetReplyBytes())}
}

func wish(ask *pb.Ask) error {
	return status.Error(codes.Code(ask.GetCode()), ask.GetMessage())
}

func (service) Unary(ctx context.Context, ask *pb.Ask) (*pb.Answer, error) {
	if err := pause(ctx, ask.GetDelayMs()); err != nil {
		return nil, err
	}
	if err := wish(ask); err != nil {
		return nil, err
	}
	return answer(ask, 0), nil
}

func (service) ServerStream(ask *pb.Ask, stream grpc.ServerStreamingServer[pb.Answer]) error {
	ctx := stream.Context()
	if err := pause(ctx, ask.GetDelayMs()); err != nil {
		return err
	}
	for n := range int(ask.GetReplies()) {
		if n > 0 {
			if err := pause(ctx, ask.GetGapMs()); err != nil {
				return err
			}
		}
		if err := stream.Send(answer(ask, n)); err != nil {
			return ended(ctx, err)
		}
	}
	return wish(ask)
}

func (service) ClientStream(stream grpc.ClientStreamingServer[pb.Ask, pb.Answer]) error {
	ctx := stream.Context()
	var last *pb.Ask
	for n := 0; ; n++ {
		ask, err := stream.Recv()
		if err == nil {
			last = ask
			continue
		}
		if err != io.EOF {
			return ended(ctx, err)
		}
		if err := pause(ctx, last.GetDelayMs()); err != nil {
			return err
		}
		if err := wish(last); err != nil {
			return err
		}
		if err := stream.SendAndClose(answer(last, n)); err != nil {
			return ended(ctx, err)
		}
		return nil
	}
}

func (service) Bidi(stream grpc.BidiStreamingServer[pb.Ask, pb.Answer]) error {
	ctx := stream.Context()
	var last *pb.Ask
	for n := 0; ; n++ {
		ask, err := stream.Recv()
		if err == io.EOF {
			return wish(last)
		}
		if err != nil {
			return ended(ctx, err)
		}
		last = ask
		if err := pause(ctx, ask.GetDelayMs()); err != nil {
			return err
		}
		if err := stream.Send(answer(ask, n)); err != nil {
			return ended(ctx, err)
		}
	}
}

func callID(ctx context.Context) string {
	return strings.Join(metadata.ValueFromIncomingContext(ctx, "x-call-id"), ",")
}

func traceParent(ctx context.Context) string {
	return strings.Join(metadata.ValueFromIncomingContext(ctx, "traceparent"), ",")
}

// countedStream counts the messages of a streaming call.
type countedStream struct {
	grpc.ServerStream
	record *record
}

func (s countedStream) SendMsg(m any) error {
	err := s.ServerStream.SendMsg(m)
	if err == nil {
		s.record.Sent++
	}
	return err
}

func (s countedStream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil {
		s.record.Received++
	}
	return err
}

func serve(listen string, calls *callLog) {
	network, address := "tcp", listen
	if path, ok := strings.CutPrefix(listen, "unix:"); ok {
		network, address = "unix", path
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			log.Fatal(err)
		}
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		log.Fatal(err)
	}
	unary := func(ctx context.Context, ask any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		r := begin("server", callID(ctx), info.FullMethod)
		r.TraceParent = traceParent(ctx)
		r.Received = 1
		reply, err := handler(ctx, ask)
		if err == nil {
			r.Sent = 1
		}
		calls.finish(r, err)
		return reply, err
	}
	stream := func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		r := begin("server", callID(stream.Context()), info.FullMethod)
		r.TraceParent = traceParent(stream.Context())
		err := handler(srv, countedStream{stream, r})
		calls.finish(r, err)
		return err
	}
	server := grpc.NewServer(
		grpc.Creds(transport(true)),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxMetadata),
		grpc.UnaryInterceptor(unary),
		grpc.StreamInterceptor(stream),
	)
	pb.RegisterExerciseServer(server, service{})

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	fmt.Println("listening")
	select {
	case err := <-served:
		log.Fatal(err)
	case <-stop:
		time.AfterFunc(time.Second, server.Stop)
		server.GracefulStop()
	}
}

// --- client ---------------------------------------------------------------

var mixed = []string{"unary", "errors", "server-stream", "client-stream", "bidi"}

// plan is what one call of a scenario is.
type plan struct {
	ctx      context.Context
	ask      *pb.Ask
	method   string
	deadline time.Duration
	cancel   bool
}

func planCall(scenario string, n int) (*plan, error) {
	id := fmt.Sprintf("%s-%s-%d-%d", lang, scenario, n, os.Getpid())
	failure := fmt.Sprintf("expected failure %d: naïve %% text", n)
	p := &plan{
		ctx:    metadata.AppendToOutgoingContext(context.Background(), "x-call-id", id),
		ask:    &pb.Ask{Id: id, ReplyBytes: 64, Payload: make([]byte, 64)},
		method: pb.Exercise_Unary_FullMethodName,
	}
	kind := scenario
	if kind == "mixed" {
		kind = mixed[n%len(mixed)]
	}
	switch kind {
	case "unary", "churn":
	case "errors":
		p.ask.Code, p.ask.Message = int32(n%17), failure
	case "server-stream":
		p.method = pb.Exercise_ServerStream_FullMethodName
		p.ask.Replies, p.ask.GapMs = 3, 5
		if n%4 == 3 {
			p.ask.Code, p.ask.Message = int32(codes.Aborted), failure
		}
	case "client-stream":
		p.method = pb.Exercise_ClientStream_FullMethodName
	case "bidi":
		p.method = pb.Exercise_Bidi_FullMethodName
	case "cancel":
		p.method, p.cancel = pb.Exercise_ServerStream_FullMethodName, true
		p.ask.Replies, p.ask.GapMs = 1000, 5
	case "deadline":
		p.ask.DelayMs, p.deadline = 400, 60*time.Millisecond
	case "large":
		p.ask.ReplyBytes, p.ask.Payload = 4*mib, make([]byte, 4*mib)
	case "metadata":
		filler := make([]byte, 10_000)
		rand.Read(filler)
		p.ctx = metadata.AppendToOutgoingContext(p.ctx, "x-filler", base32.StdEncoding.EncodeToString(filler))
	default:
		return nil, fmt.Errorf("unknown scenario %q", scenario)
	}
	return p, nil
}

func (p *plan) call(client pb.ExerciseClient, calls *callLog) {
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	r := begin("client", p.ask.Id, p.method)
	if p.deadline > 0 {
		ctx, cancel = context.WithTimeout(ctx, p.deadline)
		defer cancel()
	}
	var err error
	switch p.method {
	case pb.Exercise_Unary_FullMethodName:
		r.Sent = 1
		if _, err = client.Unary(ctx, p.ask); err == nil {
			r.Received = 1
		}
	case pb.Exercise_ServerStream_FullMethodName:
		err = p.serverStream(ctx, cancel, client, r)
	case pb.Exercise_ClientStream_FullMethodName:
		err = p.clientStream(ctx, client, r)
	case pb.Exercise_Bidi_FullMethodName:
		err = p.bidi(ctx, client, r)
	}
	calls.finish(r, err)
}

// drain receives until the status of the call, nil for OK.
func drain(recv func() (*pb.Answer, error), r *record, each func()) error {
	for {
		switch _, err := recv(); err {
		case nil:
			r.Received++
			each()
		case io.EOF:
			return nil
		default:
			return err
		}
	}
}

func (p *plan) serverStream(ctx context.Context, cancel func(), client pb.ExerciseClient, r *record) error {
	stream, err := client.ServerStream(ctx, p.ask)
	if err != nil {
		return err
	}
	r.Sent = 1
	return drain(stream.Recv, r, func() {
		if p.cancel {
			cancel()
		}
	})
}

func (p *plan) clientStream(ctx context.Context, client pb.ExerciseClient, r *record) error {
	stream, err := client.ClientStream(ctx)
	if err != nil {
		return err
	}
	for n := range 4 {
		if n > 0 {
			time.Sleep(2 * time.Millisecond)
		}
		if stream.Send(p.ask) != nil {
			break // CloseAndRecv tells why
		}
		r.Sent++
	}
	if _, err = stream.CloseAndRecv(); err == nil {
		r.Received = 1
	}
	return err
}

func (p *plan) bidi(ctx context.Context, client pb.ExerciseClient, r *record) error {
	stream, err := client.Bidi(ctx)
	if err != nil {
		return err
	}
	for range 3 {
		if stream.Send(p.ask) != nil {
			break // Recv tells why
		}
		r.Sent++
		if _, err := stream.Recv(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		r.Received++
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return drain(stream.Recv, r, func() {})
}

// TLS, if EXERCISE_TLS names a folder with ca.pem, cert.pem and key.pem;
// EXERCISE_MUTUAL_TLS has the client show its certificate too.
func transport(server bool) credentials.TransportCredentials {
	folder, mutual := os.Getenv("EXERCISE_TLS"), os.Getenv("EXERCISE_MUTUAL_TLS") != ""
	if folder == "" {
		return insecure.NewCredentials()
	}
	ca, err := os.ReadFile(folder + "/ca.pem")
	if err != nil {
		log.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	config := &tls.Config{RootCAs: pool}
	if server || mutual {
		own, err := tls.LoadX509KeyPair(folder+"/cert.pem", folder+"/key.pem")
		if err != nil {
			log.Fatal(err)
		}
		config.Certificates = []tls.Certificate{own}
	}
	if server && mutual {
		config.ClientCAs, config.ClientAuth = pool, tls.RequireAndVerifyClientCert
	}
	return credentials.NewTLS(config)
}

func connect(target string) *grpc.ClientConn {
	conn, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(transport(false)),
		grpc.WithNoProxy(),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableHealthCheck(),
		grpc.WithMaxHeaderListSize(maxMetadata),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
	)
	if err != nil {
		log.Fatal(err)
	}
	return conn
}

// pace gives a token when a call is due, rate times a second; without a rate
// one is always due. The runtime's timers are too coarse for that when
// a process is half idle (epoll_wait counts milliseconds); a timer behind a
// file descriptor is not.
func pace(rate int) <-chan struct{} {
	due := make(chan struct{}, 1<<16)
	if rate <= 0 {
		close(due)
		return due
	}
	const monotonic, nonblock = 1, syscall.O_NONBLOCK | syscall.O_CLOEXEC
	fd, _, errno := syscall.Syscall(syscall.SYS_TIMERFD_CREATE, monotonic, nonblock, 0)
	if errno != 0 {
		log.Fatal("timerfd_create: ", errno)
	}
	period := syscall.NsecToTimespec(int64(time.Second) / int64(rate))
	timer := [2]syscall.Timespec{period, period} // interval, first
	_, _, errno = syscall.Syscall6(syscall.SYS_TIMERFD_SETTIME, fd, 0, uintptr(unsafe.Pointer(&timer)), 0, 0, 0)
	if errno != 0 {
		log.Fatal("timerfd_settime: ", errno)
	}
	ticks := os.NewFile(fd, "timer")
	go func() {
		var count [8]byte
		for {
			if _, err := ticks.Read(count[:]); err != nil {
				log.Fatal(err)
			}
			for range binary.NativeEndian.Uint64(count[:]) {
				due <- struct{}{}
			}
		}
	}()
	return due
}

func drive(target, scenario string, total, concurrency, connections, rate int, calls *callLog) {
	due := pace(rate)
	var conns []*grpc.ClientConn
	if scenario != "churn" {
		for range connections {
			conns = append(conns, connect(target))
		}
	}
	var next atomic.Int64
	// Asked to end, it makes no more calls.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		next.Store(math.MaxInt32)
	}()
	var workers sync.WaitGroup
	for range concurrency {
		workers.Go(func() {
			for {
				<-due
				n := int(next.Add(1)) - 1
				if n >= total {
					return
				}
				p, err := planCall(scenario, n)
				if err != nil {
					log.Fatal(err)
				}
				if scenario == "churn" {
					conn := connect(target)
					p.call(pb.NewExerciseClient(conn), calls)
					conn.Close()
				} else {
					p.call(pb.NewExerciseClient(conns[n%len(conns)]), calls)
				}
			}
		})
	}
	workers.Wait()
	for _, conn := range conns {
		conn.Close()
	}
}

func main() {
	side := ""
	if len(os.Args) > 1 {
		side = os.Args[1]
	}
	flags := flag.NewFlagSet(side, flag.ExitOnError)
	logPath := flags.String("log", "", "file to append one JSON line per call to")
	switch side {
	case "server":
		listen := flags.String("listen", "", "127.0.0.1:PORT or unix:/path")
		flags.Parse(os.Args[2:])
		serve(*listen, openLog(*logPath))
	case "client":
		target := flags.String("target", "", "127.0.0.1:PORT or unix:/path")
		scenario := flags.String("scenario", "unary", "what the calls are")
		total := flags.Int("calls", 1, "calls in total")
		concurrency := flags.Int("concurrency", 1, "calls at once")
		connections := flags.Int("connections", 1, "connections to spread them over")
		delay := flags.Int("start-delay-ms", 0, "wait before connecting")
		rate := flags.Int("rate", 0, "calls a second, 0: one after the other")
		flags.Parse(os.Args[2:])
		if _, err := planCall(*scenario, 0); err != nil {
			log.Fatal(err)
		}
		calls := openLog(*logPath)
		time.Sleep(time.Duration(*delay) * time.Millisecond)
		drive(*target, *scenario, *total, max(*concurrency, 1), max(*connections, 1), *rate, calls)
	default:
		log.Fatal("usage: run server|client --log FILE ...")
	}
}
