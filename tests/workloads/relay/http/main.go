// The relay of proto/relay.proto over net/http, its messages in JSON: an
// ordinary service without tracing code, and the load for it.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

type hop struct {
	ID    string   `json:"id"`
	Route []string `json:"route"`
	Fan   uint     `json:"fan"`
	Delay uint     `json:"delay"`
	Depth uint     `json:"depth"`
	Count int64    `json:"count"`
}

// protocols are HTTP/1.1, or HTTP/2 by prior knowledge.
func protocols(h2c bool) *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(!h2c)
	p.SetUnencryptedHTTP2(h2c)
	return p
}

type relay struct {
	client *http.Client
	log    *os.File
	worker worker
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

func (r *relay) call(ctx context.Context, to string, h *hop) (*hop, error) {
	body, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, "POST", "http://"+to+"/pass", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("x-call-id", h.ID)
	response, err := r.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer := new(hop)
	if err := json.NewDecoder(response.Body).Decode(answer); err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, response.Body)
	return answer, err
}

// onwards makes the calls of a hop; how many calls that made in all.
func (r *relay) onwards(ctx context.Context, h *hop) (int64, error) {
	if len(h.Route) == 0 {
		return 0, nil
	}
	var count atomic.Int64
	var failed error
	var mu sync.Mutex
	var done sync.WaitGroup
	var deep func(depth, k uint)
	deep = func(depth, k uint) {
		if depth > 0 {
			done.Add(1)
			go func() {
				defer done.Done()
				deep(depth-1, k)
			}()
			return
		}
		if h.Delay > 0 {
			time.Sleep(time.Duration(rand.Intn(int(h.Delay)*1000)) * time.Microsecond)
		}
		var answer *hop
		var err error
		r.worker.do(ctx, func(ctx context.Context) {
			answer, err = r.call(ctx, h.Route[0], &hop{
				ID: fmt.Sprintf("%s/%d", h.ID, k), Route: h.Route[1:], Fan: h.Fan, Delay: h.Delay, Depth: h.Depth,
			})
		})
		if err != nil {
			mu.Lock()
			failed = errors.Join(failed, err)
			mu.Unlock()
			return
		}
		count.Add(answer.Count)
	}
	fan := max(h.Fan, 1)
	for k := range fan {
		depth := h.Depth
		if fan > 1 && depth == 0 {
			depth = 1
		}
		deep(depth, k)
	}
	done.Wait()
	return count.Load(), failed
}

func (r *relay) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	h := new(hop)
	if err := json.NewDecoder(request.Body).Decode(h); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if r.log != nil {
		line, _ := json.Marshal(map[string]any{
			"id": h.ID, "traceparent": append([]string{}, request.Header.Values("traceparent")...),
		})
		if _, err := r.log.Write(append(line, '\n')); err != nil {
			log.Fatal(err)
		}
	}
	count, err := r.onwards(request.Context(), h)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	if err := json.NewEncoder(w).Encode(&hop{ID: h.ID, Count: count + 1}); err != nil {
		log.Print(err)
	}
}

func main() {
	side := ""
	if len(os.Args) > 1 {
		side = os.Args[1]
	}
	flags := flag.NewFlagSet(side, flag.ExitOnError)
	flags.Int("connections", 1, "HTTP/1 takes as many as it needs")
	logPath := flags.String("log", "", "file to append one JSON line per served call to")
	h2c := flags.Bool("h2c", false, "HTTP/2 by prior knowledge, to serve and to call")
	listen := flags.String("listen", "127.0.0.1:0", "address")
	to := flags.String("to", "", "address of the first relay")
	route := flags.String("route", "", "addresses onwards, with commas")
	calls := flags.Int("calls", 1, "root calls")
	concurrency := flags.Int("concurrency", 1, "root calls at once")
	fan := flags.Uint("fan", 0, "see Hop")
	delay := flags.Uint("delay", 0, "see Hop")
	depth := flags.Uint("depth", 0, "see Hop")
	flags.Int("stream", 0, "not here")
	wait := flags.Int("start-delay-ms", 0, "wait before the first call")
	mode := flags.String("worker", "", "who makes the calls: a shared worker, with the asker's `context` or bare")
	flags.Parse(os.Args[2:])
	r := &relay{client: &http.Client{Transport: &http.Transport{
		Protocols: protocols(*h2c), MaxIdleConnsPerHost: 64, DisableCompression: true,
	}}}
	r.worker.mode = *mode
	switch side {
	case "serve":
		if *logPath != "" {
			file, err := os.OpenFile(*logPath, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
			if err != nil {
				log.Fatal(err)
			}
			r.log = file
		}
		listener, err := net.Listen("tcp", *listen)
		if err != nil {
			log.Fatal(err)
		}
		server := &http.Server{Handler: r, Protocols: protocols(*h2c)}
		ended := make(chan os.Signal, 1)
		signal.Notify(ended, syscall.SIGTERM, os.Interrupt)
		go func() {
			<-ended
			server.Close()
		}()
		fmt.Println("listening", listener.Addr())
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Fatal(err)
		}
	case "load":
		time.Sleep(time.Duration(*wait) * time.Millisecond)
		var onwards []string
		if *route != "" {
			onwards = strings.Split(*route, ",")
		}
		var next, count atomic.Int64
		var done sync.WaitGroup
		for range *concurrency {
			done.Add(1)
			go func() {
				defer done.Done()
				for {
					n := int(next.Add(1)) - 1
					if n >= *calls {
						return
					}
					answer, err := r.call(context.Background(), *to, &hop{
						ID: fmt.Sprintf("r%d", n), Route: onwards, Fan: *fan, Delay: *delay, Depth: *depth,
					})
					if err != nil {
						log.Fatal(err)
					}
					count.Add(answer.Count)
				}
			}()
		}
		done.Wait()
		fmt.Println("calls", count.Load())
	default:
		log.Fatal("usage: run serve|load ...")
	}
}
