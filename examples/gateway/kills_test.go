// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

const (
	echoAddress = "GATEWAY_TEST_MODEL"
	echoWords   = 10 // of each answer
)

// serveEchoes is a model in a process of its own, which can be killed. Its answer is the prompt,
// with a number, again and again.
func serveEchoes() {
	fail := http.ListenAndServe(os.Getenv(echoAddress), http.HandlerFunc(func(
		w http.ResponseWriter, r *http.Request,
	) {
		var q sealedchat.ChatRequest
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		prompt := q.Messages[len(q.Messages)-1].Text()
		for i := range echoWords {
			word, _ := json.Marshal(prompt + "-" + strconv.Itoa(i) + " ")
			_, _ = fmt.Fprintf(w, `data: {"id":"1","object":"chat.completion.chunk","created":1,`+
				`"model":"m","choices":[{"index":0,"delta":{"content":%s}}]}`+"\n\n", word)
			_ = http.NewResponseController(w).Flush()
			time.Sleep(30 * time.Millisecond)
		}
		_, _ = fmt.Fprint(w, "data: [DONE]\n\n")
	}))
	fmt.Fprintln(os.Stderr, fail)
	os.Exit(1)
}

// echoModel is the process of serveEchoes.
type echoModel struct {
	t       *testing.T
	address string
	cmd     *exec.Cmd
}

func (m *echoModel) start() {
	m.t.Helper()
	m.cmd = exec.Command(os.Args[0])
	m.cmd.Env = append(os.Environ(), asChild+"=model", echoAddress+"="+m.address)
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
}

func (m *echoModel) kill() {
	if m.cmd != nil {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
	}
}

// Two replicas with a key store and Redis, under 50 streams: kill -9 of either, of Redis and of the
// upstream gives no stream a false end, and nobody somebody else's answer. Once what was
// killed runs again, both are ready and all streams succeed, without help.
func TestReplicasUnderKills(t *testing.T) {
	if os.Getenv("SEALEDCHAT_REPLICAS") == "" {
		t.Skip("takes long; SEALEDCHAT_REPLICAS=1 runs it")
	}
	w := &world{t: t, redis: startRedis(t, "--appendonly", "yes", "--appendfsync", "always"),
		dir: filepath.Join(t.TempDir(), "keys"), took: make(map[string]int)}
	upstream := &echoModel{t: t, address: freeAddress(t)}
	upstream.start()
	t.Cleanup(upstream.kill)
	file := keyFile(t, "team "+apiKey+"\n", 0o600)
	for range 2 {
		w.replicas = append(w.replicas, startReplica(t, "-upstream",
			"http://"+upstream.address+"/v1", "-keys", w.dir, "-create-keys", "-replay",
			w.redis.url(), "-replay-durable", "-api-keys", file))
	}
	w.startProxy()
	load := startLoad(w, 50)
	for what, kill := range []func(){
		func() { w.replicas[0].kill(); load.more(20); w.replicas[0].start(t) },
		func() { w.replicas[1].kill(); load.more(20); w.replicas[1].start(t) },
		func() { w.redis.kill(); load.fails(50); w.redis.start() },
		func() { upstream.kill(); load.fails(50); upstream.start() },
	} {
		load.more(100)
		failed := load.failed.Load()
		kill()
		for i, r := range w.replicas {
			until(t, "ready after a kill", func() bool {
				status, _, err := tryGet(t.Context(), r.url+"/readyz")
				return err == nil && status == http.StatusOK
			})
			t.Logf("kill %d: replica %d is ready, %d streams failed", what, i,
				load.failed.Load()-failed)
		}
		load.well(100)
	}
	load.end()
	t.Logf("%d streams were whole, %d failed", load.whole.Load(), load.failed.Load())
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// load is a number of users who stream one answer after the other.
type load struct {
	t             *testing.T
	whole, failed atomic.Int64
	inARow        atomic.Int64 // whole ones since the last that failed
	stop          chan struct{}
	users         sync.WaitGroup
}

func startLoad(w *world, users int) *load {
	l := &load{t: w.t, stop: make(chan struct{})}
	w.t.Cleanup(l.end)
	var clients []*sealedchat.SecureCompletionClient
	for range 5 {
		clients = append(clients, w.client(sealedchat.ProtocolOHTTP))
	}
	for i := range users {
		l.users.Go(func() {
			for n := 0; !closed(l.stop); n++ {
				l.one(clients[i%len(clients)], fmt.Sprintf("user%d-%d", i, n))
			}
		})
	}
	return l
}

// one streams an answer to a prompt that nobody else sends.
func (l *load) one(c *sealedchat.SecureCompletionClient, prompt string) {
	var got, want strings.Builder
	for i := range echoWords {
		fmt.Fprintf(&want, "%s-%d ", prompt, i)
	}
	var failed error
	for chunk, err := range c.Stream(l.t.Context(), &sealedchat.ChatRequest{Model: "m",
		Messages: []sealedchat.Message{sealedchat.UserMessage(prompt)}}) {
		if err != nil {
			failed = err
			break
		}
		got.WriteString(chunk.Text())
	}
	switch {
	case !strings.HasPrefix(want.String(), got.String()):
		l.t.Errorf("somebody else's answer: %q to %q", got.String(), prompt)
	case failed == nil && got.Len() != want.Len():
		l.t.Errorf("a false end: %q to %q", got.String(), prompt)
	case failed == nil:
		l.whole.Add(1)
		l.inARow.Add(1)
	default:
		l.failed.Add(1)
		l.inARow.Store(0)
		select { // do not ask what is down all the time
		case <-l.stop:
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// more waits until n more answers have come whole.
func (l *load) more(n int64) {
	from := l.whole.Load()
	until(l.t, "whole answers", func() bool { return l.whole.Load() >= from+n })
}

// fails waits until n more have failed.
func (l *load) fails(n int64) {
	from := l.failed.Load()
	until(l.t, "failures", func() bool { return l.failed.Load() >= from+n })
}

// well waits until n in a row have come whole.
func (l *load) well(n int64) {
	until(l.t, "no failures", func() bool { return l.inARow.Load() >= n })
}

func (l *load) end() {
	if !closed(l.stop) {
		close(l.stop)
	}
	l.users.Wait()
}
