// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Command peers compares this package's client, a straightforward Go client, and the real Python
// client, in turn against one gateway in another process, over https. Linux. It needs a Python with
// nomyo 0.2.9, cryptography 48.0.0 and httpx 0.28.1:
//
//	python3 -m venv /tmp/venv && \
//	  /tmp/venv/bin/pip install nomyo==0.2.9 cryptography==48.0.0 httpx==0.28.1
//	cd bench/peers && go run . -python /tmp/venv/bin/python        # minutes; -small: seconds
//
// Then it compares both ends of Oblivious HTTP with openpcc/ohttp, and with a proxy that seals
// nothing, all in one process. This part alone:
//
//	cd bench/peers && go run . -ohttp                              # a minute; -small: seconds
//
// It writes RESULTS.md and the plots into the folder -out (".."), with -ohttp one section and plot.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "gateway":
			return serveGateway(args[1])
		case "ours", "ohttp", "naive":
			return work(args)
		case "floor":
			n, _ := strconv.Atoi(args[3])
			return floor(args[1], args[2], n)
		case "pairs":
			return pairs()
		case "create":
			return createStore(args[1])
		case "cold":
			return cold(args[1], args[2], args[3])
		}
	}
	flags := flag.NewFlagSet("peers", flag.ExitOnError)
	python := flags.String("python", "",
		"the Python with nomyo in it; none: without the Python client")
	out := flags.String("out", "..", "folder for RESULTS.md and peers.svg")
	small := flags.Bool("small", false, "a few requests only, to see that it runs")
	rounds := flags.Int("rounds", 3, "how often each client has its turn")
	var beside besideFlags
	beside.register(flags)
	_ = flags.Parse(args)
	if beside.ohttp {
		return beside.run(*out, *small, *rounds)
	}
	b := &bench{python: *python, rounds: *rounds, requests: 48, bigRequests: 16,
		concurrency: []int{1, 8, 32}, times: [2]string{"500x", "100x"}}
	if *small {
		b.rounds, b.requests, b.bigRequests, b.concurrency, b.times = 1, 4, 2, []int{1, 4},
			[2]string{"1x", "1x"}
	}
	var err error
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "peers"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if err := b.measure(); err != nil {
		return err
	}
	if err := b.report(*out); err != nil {
		return err
	}
	return beside.run(*out, *small, *rounds)
}

type bench struct {
	self, python, dir             string
	rounds, requests, bigRequests int
	concurrency                   []int
	// how often the package's own benchmarks run: Seal and Open, and the others
	times               [2]string
	base, control, cert string

	rows    []*row
	bundle  []float64    // Python's CPU with certifi's bundle
	floors  [2][]float64 // alone, and with another process in between
	colds   [][2]float64
	profile [2]string
	own     []string // lines of the package's own benchmarks
}

// row is one client at one size and concurrency.
type row struct {
	size, concurrency  int
	client             string
	cpu, peak          []float64 // of each round
	wall               []float64 // of each request
	connections, fetch float64   // per request
}

func (b *bench) measure() error {
	gateway := exec.Command(b.self, "gateway", b.dir)
	stdin, err := gateway.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := gateway.StdoutPipe()
	if err != nil {
		return err
	}
	gateway.Stderr = os.Stderr
	if err := gateway.Start(); err != nil {
		return err
	}
	defer gateway.Wait()
	defer stdin.Close()
	if _, err := fmt.Fscan(stdout, &b.base, &b.control); err != nil {
		return err
	}
	b.cert = filepath.Join(b.dir, "gateway.pem")
	clients := []string{"ours", "ohttp", "naive", "python"}
	if b.python == "" {
		clients = clients[:3]
	}
	for _, size := range []int{1 << 10, 1 << 20} {
		for _, concurrency := range b.concurrency {
			var rows []*row
			for _, c := range clients {
				rows = append(rows, &row{size: size, concurrency: concurrency, client: c})
			}
			for range b.rounds {
				for _, r := range rows {
					if err := b.one(r, b.cert); err != nil {
						return fmt.Errorf("%s, %d bytes, %d at a time: %w", r.client, size,
							concurrency, err)
					}
				}
			}
			b.rows = append(b.rows, rows...)
		}
	}
	return b.extras()
}

func (b *bench) extras() error {
	if b.python != "" {
		bundle, err := b.withBundle()
		if err != nil {
			return err
		}
		r := &row{size: 1 << 10, concurrency: 1, client: "python"}
		if err := b.one(r, bundle); err != nil {
			return err
		}
		b.bundle = r.cpu
	}
	store := filepath.Join(b.dir, "store")
	if _, err := output(exec.Command(b.self, "create", store)); err != nil {
		return err
	}
	for range max(b.rounds, 1) {
		text, err := output(exec.Command(b.self, "floor", b.base, b.cert, strconv.Itoa(b.requests)))
		if err != nil {
			return err
		}
		var alone, between float64
		if _, err := fmt.Sscan(text, &alone, &between); err != nil {
			return err
		}
		b.floors[0], b.floors[1] = append(b.floors[0], alone), append(b.floors[1], between)
		if text, err = output(exec.Command(b.self, "cold", b.base, b.cert, store)); err != nil {
			return err
		}
		var cold [2]float64
		if _, err := fmt.Sscan(text, &cold[0], &cold[1]); err != nil {
			return err
		}
		b.colds = append(b.colds, cold)
	}
	if err := b.profiles(); err != nil {
		return err
	}
	for _, these := range []struct {
		folder, pattern, times string
	}{
		{"./internal/hybrid", "Seal|Open", b.times[0]},
		{".", "OHTTP", b.times[1]},
		{"./internal/e2e", "Complete|OHTTP|GatewayProtocols|AuditEvent", b.times[1]},
	} {
		cmd := exec.Command("go", "test", "-run", "^$", "-bench", "^Benchmark("+these.pattern+")",
			"-benchtime", these.times, these.folder)
		cmd.Dir = filepath.Join("..", "..")
		text, err := output(cmd)
		found := len(b.own)
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "Benchmark") {
				b.own = append(b.own, line)
			}
		}
		if err != nil || len(b.own) == found {
			return fmt.Errorf("the package's own benchmarks: %w\n%s", err, text)
		}
	}
	return nil
}

// profiles uses a build with runtime/secret. In the ordinary build, sealing and opening block the
// signal of the profiler.
func (b *bench) profiles() error {
	visible := *b
	visible.self = filepath.Join(b.dir, "peers-runtimesecret")
	build := exec.Command("go", "build", "-o", visible.self, ".")
	build.Env = append(os.Environ(), "GOEXPERIMENT=runtimesecret")
	if _, err := output(build); err != nil {
		return err
	}
	for i, size := range []int{1 << 10, 1 << 20} {
		file := filepath.Join(b.dir, "cpu.out")
		r := &row{size: size, concurrency: 8, client: "ours"}
		if err := visible.one(r, b.cert, file); err != nil {
			return err
		}
		top, err := output(exec.Command("go", "tool", "pprof", "-top", "-nodecount", "15",
			visible.self, file))
		if err != nil {
			return err
		}
		_, b.profile[i], _ = strings.Cut(top, "flat%")
	}
	return nil
}

func output(cmd *exec.Cmd) (string, error) {
	text, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return string(text), err
}

// withBundle returns certifi's bundle of authorities, which httpx loads by default, together with
// the certificate of the gateway.
func (b *bench) withBundle() (string, error) {
	where, err := output(exec.Command(b.python, "-m", "certifi"))
	if err != nil {
		return "", err
	}
	bundle, err := os.ReadFile(strings.TrimSpace(where))
	if err != nil {
		return "", err
	}
	own, err := os.ReadFile(b.cert)
	if err != nil {
		return "", err
	}
	file := filepath.Join(b.dir, "bundle.pem")
	return file, os.WriteFile(file, slices.Concat(bundle, own), 0o644)
}

// one runs the process of a client once. The process warms up before anything is counted.
func (b *bench) one(r *row, cert string, profile ...string) error {
	requests := b.requests
	if r.size > 1<<16 {
		requests = b.bigRequests
	}
	requests = max(requests, r.concurrency)
	numbers := []string{strconv.Itoa(r.size), strconv.Itoa(r.concurrency), strconv.Itoa(requests)}
	cmd := exec.Command(b.self, append(append([]string{r.client, b.base, cert}, numbers...),
		profile...)...)
	if r.client == "python" {
		cmd = exec.Command(b.python, append([]string{"client.py", b.base}, numbers...)...)
		cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+cert)
	}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewReader(stdout)
	if line, err := lines.ReadString('\n'); err != nil || line != "ready\n" {
		_ = cmd.Wait()
		return fmt.Errorf("it said %q, %v", line, err)
	}
	before, err := b.counts()
	if err != nil {
		return err
	}
	if _, err := io.WriteString(stdin, "go\n"); err != nil {
		return err
	}
	var got result
	if err := json.NewDecoder(lines).Decode(&got); err != nil {
		_ = cmd.Wait()
		return err
	}
	after, err := b.counts()
	if err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return err
	}
	r.cpu, r.peak, r.wall = append(r.cpu, got.CPU), append(r.peak, got.Peak),
		append(r.wall, got.Wall...)
	r.connections = float64(after.Connections-before.Connections) / float64(requests)
	r.fetch = float64(after.Fetches-before.Fetches) / float64(requests)
	return nil
}

func (b *bench) counts() (c counts, err error) {
	resp, err := http.Get(b.control)
	if err != nil {
		return c, err
	}
	defer resp.Body.Close()
	return c, json.NewDecoder(resp.Body).Decode(&c)
}
