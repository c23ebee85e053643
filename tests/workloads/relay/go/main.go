// The relay of proto/relay.proto, with grpc-go: an ordinary service without
// tracing code, and the load for it.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"tracewire.test/relay/pb"
)

// secrets are the files of EXERCISE_TLS: what both sides of a mutual TLS connection show and believe.
func secrets() *tls.Config {
	folder := os.Getenv("EXERCISE_TLS")
	own, err := tls.LoadX509KeyPair(filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem"))
	if err != nil {
		log.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(folder, "ca.pem"))
	if err != nil {
		log.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	config := &tls.Config{Certificates: []tls.Certificate{own}, RootCAs: pool, ClientCAs: pool}
	if os.Getenv("EXERCISE_MUTUAL_TLS") != "" {
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return config
}

// relay keeps a few connections to each address it was ever told to call.
type relay struct {
	pb.UnimplementedRelayServer
	connections int
	next        atomic.Uint64
	mu          sync.Mutex
	conns       map[string][]*grpc.ClientConn
	log         *os.File
	worker      worker
}

// worker makes calls for whoever asks. The first who does starts it, and after some jobs it ends.
type worker struct {
	mode string // "": none; "context": it calls with the asker's context; "bare": with none
	mu   sync.Mutex
	jobs chan job
	left int
}

type job struct {
	ctx  context.Context
	call func(context.Context)
	done chan struct{}
}

const jobsOfWorker = 24

// do has the call made, and waits for it.
func (w *worker) do(ctx context.Context, call func(context.Context)) {
	if w.mode == "" {
		call(ctx)
		return
	}
	j := job{ctx, call, make(chan struct{})}
	w.mu.Lock()
	if w.left == 0 {
		w.left = jobsOfWorker
		w.jobs = make(chan job, jobsOfWorker)
		go w.work(w.jobs)
	}
	w.left--
	w.jobs <- j
	if w.left == 0 {
		close(w.jobs)
	}
	w.mu.Unlock()
	<-j.done
}

func (w *worker) work(jobs chan job) {
	for j := range jobs {
		ctx := j.ctx
		if w.mode == "bare" {
			ctx = context.Background()
		}
		go func() {
			j.call(ctx)
			close(j.done)
		}()
	}
}

func (r *relay) client(address string) (pb.RelayClient, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.conns[address]) < r.connections {
		// Addresses that begin so are reached by TLS.
		plain, encrypted := strings.CutPrefix(address, "tls:")
		how := insecure.NewCredentials()
		if encrypted {
			how = credentials.NewTLS(secrets())
		}
		conn, err := grpc.Dial(plain, grpc.WithTransportCredentials(how))
		if err != nil {
			return nil, err
		}
		r.conns[address] = append(r.conns[address], conn)
	}
	n := r.next.Add(1)
	return pb.NewRelayClient(r.conns[address][n%uint64(r.connections)]), nil
}

// onwards makes the calls of a hop; how many calls that made in all.
func (r *relay) onwards(ctx context.Context, hop *pb.Hop) (uint32, error) {
	if len(hop.Route) == 0 {
		return 0, nil
	}
	var count atomic.Uint32
	var failed error
	var mu sync.Mutex
	one := func(k uint32) {
		client, err := r.client(hop.Route[0])
		if err == nil {
			if hop.DelayMs > 0 {
				time.Sleep(time.Duration(rand.Intn(int(hop.DelayMs)*1000)) * time.Microsecond)
			}
			id := fmt.Sprintf("%s/%d", hop.Id, k)
			var answer *pb.Hop
			r.worker.do(ctx, func(ctx context.Context) {
				answer, err = client.Pass(metadata.AppendToOutgoingContext(ctx, "x-call-id", id), &pb.Hop{
					Id: id, Route: hop.Route[1:], Fan: hop.Fan, DelayMs: hop.DelayMs, Depth: hop.Depth,
				})
			})
			if err == nil {
				count.Add(answer.Count)
			}
		}
		if err != nil {
			mu.Lock()
			failed = errors.Join(failed, err)
			mu.Unlock()
		}
	}
	var done sync.WaitGroup
	var deep func(depth, k uint32)
	deep = func(depth, k uint32) {
		if depth == 0 {
			one(k)
			return
		}
		done.Add(1)
		go func() {
			defer done.Done()
			deep(depth-1, k)
		}()
	}
	fan := max(hop.Fan, 1)
	for k := range fan {
		depth := hop.Depth
		if fan > 1 && depth == 0 {
			depth = 1
		}
		deep(depth, k)
	}
	done.Wait()
	return count.Load(), failed
}

func (r *relay) Pass(ctx context.Context, hop *pb.Hop) (*pb.Hop, error) {
	r.note(ctx, hop.Id)
	count, err := r.onwards(ctx, hop)
	return &pb.Hop{Id: hop.Id, Count: count + 1}, err
}

func (r *relay) Flow(stream pb.Relay_FlowServer) error {
	for {
		hop, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		count, err := r.onwards(stream.Context(), hop)
		if err != nil {
			return err
		}
		if err := stream.Send(&pb.Hop{Id: hop.Id, Count: count}); err != nil {
			return err
		}
	}
}

// note writes which contexts the application itself was sent.
func (r *relay) note(ctx context.Context, id string) {
	if r.log == nil {
		return
	}
	md, _ := metadata.FromIncomingContext(ctx)
	line, err := json.Marshal(map[string]any{"id": id, "traceparent": append([]string{}, md.Get("traceparent")...)})
	if err == nil {
		_, err = r.log.Write(append(line, '\n'))
	}
	if err != nil {
		log.Fatal(err)
	}
}

func open(path string) *os.File {
	if path == "" {
		return nil
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		log.Fatal(err)
	}
	return file
}

func serve(listen string, encrypted bool, workers uint, r *relay) {
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		log.Fatal(err)
	}
	var options []grpc.ServerOption
	if workers > 0 {
		options = append(options, grpc.NumStreamWorkers(uint32(workers)))
	}
	if encrypted {
		options = append(options, grpc.Creds(credentials.NewTLS(secrets())))
	}
	server := grpc.NewServer(options...)
	pb.RegisterRelayServer(server, r)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, os.Interrupt)
	go func() {
		<-ended
		server.Stop()
	}()
	fmt.Println("listening", listener.Addr())
	if err := server.Serve(listener); err != nil {
		log.Fatal(err)
	}
}

// load makes root calls r0, r1, … and prints how many calls that were in all.
func load(r *relay, to string, route []string, calls, concurrency, streamed int, hop *pb.Hop) {
	var next atomic.Int64
	var count atomic.Int64
	var done sync.WaitGroup
	for range concurrency {
		done.Add(1)
		go func() {
			defer done.Done()
			for {
				n := int(next.Add(1)) - 1
				if n >= calls {
					return
				}
				id := fmt.Sprintf("r%d", n)
				ctx := metadata.AppendToOutgoingContext(context.Background(), "x-call-id", id)
				client, err := r.client(to)
				if err != nil {
					log.Fatal(err)
				}
				ask := &pb.Hop{Id: id, Route: route, Fan: hop.Fan, DelayMs: hop.DelayMs, Depth: hop.Depth}
				if streamed == 0 {
					answer, err := client.Pass(ctx, ask)
					if err != nil {
						log.Fatal(err)
					}
					count.Add(int64(answer.Count))
					continue
				}
				stream, err := client.Flow(ctx)
				if err != nil {
					log.Fatal(err)
				}
				count.Add(1)
				for m := range streamed {
					// Calls of the m-th message are id/m/k, which belong to id all the same.
					ask.Id = fmt.Sprintf("%s.%d", id, m)
					if err := stream.Send(ask); err != nil {
						log.Fatal(err)
					}
					answer, err := stream.Recv()
					if err != nil {
						log.Fatal(err)
					}
					count.Add(int64(answer.Count))
				}
				if err := stream.CloseSend(); err != nil {
					log.Fatal(err)
				}
				if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
					log.Fatal(err)
				}
			}
		}()
	}
	done.Wait()
	fmt.Println("calls", count.Load())
}

func main() {
	side := ""
	if len(os.Args) > 1 {
		side = os.Args[1]
	}
	flags := flag.NewFlagSet(side, flag.ExitOnError)
	connections := flags.Int("connections", 1, "connections to each address")
	logPath := flags.String("log", "", "file to append one JSON line per served call to")
	r := &relay{conns: map[string][]*grpc.ClientConn{}}
	switch side {
	case "serve":
		listen := flags.String("listen", "127.0.0.1:0", "address")
		encrypted := flags.Bool("tls", false, "serve by TLS")
		workers := flags.Uint("workers", 0, "grpc.NumStreamWorkers")
		flags.StringVar(&r.worker.mode, "worker", "", "who makes the calls: a shared worker, with the asker's `context` or bare")
		flags.Parse(os.Args[2:])
		r.connections, r.log = *connections, open(*logPath)
		serve(*listen, *encrypted, *workers, r)
	case "load":
		to := flags.String("to", "", "address of the first relay")
		route := flags.String("route", "", "addresses onwards, with commas")
		calls := flags.Int("calls", 1, "root calls")
		concurrency := flags.Int("concurrency", 1, "root calls at once")
		fan := flags.Uint("fan", 0, "see Hop")
		delay := flags.Uint("delay", 0, "see Hop")
		depth := flags.Uint("depth", 0, "see Hop")
		stream := flags.Int("stream", 0, "messages of a Flow call in place of Pass")
		wait := flags.Int("start-delay-ms", 0, "wait before the first call")
		flags.Parse(os.Args[2:])
		r.connections = *connections
		var onwards []string
		if *route != "" {
			onwards = strings.Split(*route, ",")
		}
		time.Sleep(time.Duration(*wait) * time.Millisecond)
		load(r, *to, onwards, *calls, *concurrency, *stream,
			&pb.Hop{Fan: uint32(*fan), DelayMs: uint32(*delay), Depth: uint32(*depth)})
	default:
		log.Fatal("usage: run serve|load ...")
	}
}
