// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const (
	asChild     = "PROXY_TEST_CHILD" // its arguments, one per line
	controlName = "PROXY_TEST_CONTROL"
)

// TestMain runs the proxy if the test's own binary is started as one. It says on standard output
// when it has wiped its memory.
func TestMain(m *testing.M) {
	if os.Getenv(aloneURL) != "" {
		os.Exit(alone())
	}
	args := os.Getenv(asChild)
	if args == "" {
		os.Exit(m.Run())
	}
	p := &proxy{env: os.Getenv, stdout: os.Stdout, stderr: os.Stderr, grace: time.Second,
		bodyTime:  time.Minute,
		wipeAfter: 3 * time.Second, wipe: func() {
			sealedchat.ScrubHeap()
			fmt.Println("wiped: yes")
		}}
	os.Exit(p.run(program.Signals(), strings.Split(args, "\n")))
}

// registers is how much a thread's stack can hold of what went through vector registers, in bytes.
const registers = 39

// random is a text of so many characters that occurs nowhere else.
func random(size int) string {
	b := make([]byte, (size+1)/2)
	_, _ = rand.Read(b)
	return fmt.Sprintf("%x", b)[:size]
}

// mirror is a model whose answers are as long as the prompt, and nothing that is in it. It streams
// in pieces of 40 characters, as a model does.
func mirror(answers map[string]string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var request struct {
			Messages []sealedchat.Message
			Stream   bool
		}
		if json.NewDecoder(r.Body).Decode(&request) != nil {
			http.Error(w, "no prompt", http.StatusBadRequest)
			return
		}
		answer := answers[request.Messages[0].Text()]
		if !request.Stream {
			w.Header().Set("Content-Type", "application/json")
			_, _ = fmt.Fprintf(w, `{"id":"c","object":"chat.completion","created":1,"model":"m",`+
				`"choices":[{"index":0,"message":{"role":"assistant","content":"%s"},`+
				`"finish_reason":"stop"}]}`, answer)
			return
		}
		pieces(func(send func(string)) {
			for part := range slices.Chunk([]byte(answer), 40) {
				send(string(part))
			}
		})(w, r)
	}
}

// TestMemory has a proxy carry prompts and answers, and looks for them in its memory: when the last
// request is over, and once the proxy has wiped what is free. What HTTPClient leaves in ordinary
// memory is there until then, and nothing afterwards.
func TestMemory(t *testing.T) {
	for _, protocol := range []sealedchat.Protocol{sealedchat.ProtocolOHTTP,
		sealedchat.ProtocolEnvelope} {
		t.Run(string(protocol), func(t *testing.T) { testMemory(t, protocol) })
	}
}

func testMemory(t *testing.T, protocol sealedchat.Protocol) {
	answers := make(map[string]string)
	var secrets []testkit.MemorySecret
	type ask struct {
		prompt string
		stream bool
	}
	var asks []ask
	for _, size := range []int{300, 3000, 100_000} {
		for _, stream := range []bool{false, true} {
			for range 4 {
				prompt, answer := random(size), random(size)
				answers[prompt] = answer
				asks = append(asks, ask{prompt, stream})
				row := fmt.Sprintf("%d characters, stream %v", size, stream)
				secrets = append(secrets,
					testkit.MemorySecret{Row: "prompt, " + row, Name: "prompt", Bytes: []byte(prompt)})
				if !stream { // of a stream only the pieces could be found
					secrets = append(secrets, testkit.MemorySecret{Row: "answer, " + row,
						Name: "answer", Bytes: []byte(answer)})
					continue
				}
				for part := range slices.Chunk([]byte(answer), 40) {
					secrets = append(secrets, testkit.MemorySecret{Row: "answer, " + row,
						Name: "piece", Bytes: part})
				}
			}
		}
	}
	control := testkit.MemorySecret{Row: "control", Name: "control", Bytes: []byte(random(200))}
	search := testkit.NewSecretSearch(append(secrets, control))

	remote := newRemote(t, protocol, mirror(answers))
	cmd := testkit.Child(t, []string{
		asChild + "=" + strings.Join(remote.args("-listen", "127.0.0.1:0", "-protocol",
			string(protocol)), "\n"),
		controlName + "=" + string(control.Bytes),
		// Signals' frames hold what is in vector registers, up to 128 bytes (docs/memory.md). They
		// are not what is counted here.
		"GODEBUG=asyncpreemptoff=1"})
	in, out := testkit.StartChild(t, cmd)
	defer func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	until := func(name string) string {
		for {
			line, err := out.ReadString('\n')
			if err != nil {
				t.Fatalf("waiting for %q: %v", name, err)
			}
			if value, ok := strings.CutPrefix(line, name+": "); ok {
				return strings.TrimSpace(value)
			}
		}
	}
	r := &running{t: t, url: until("listening"), client: &http.Client{
		Transport: &http.Transport{DisableCompression: true}}}
	defer r.client.CloseIdleConnections() // until the end: its buffers count
	for _, a := range asks {
		got := r.do("POST", "/v1/chat/completions", fmt.Sprintf(
			`{"model":"m","stream":%v,"messages":[{"role":"user","content":"%s"}]}`, a.stream,
			a.prompt))
		answer := answers[a.prompt]
		if got.err != nil || got.StatusCode != 200 ||
			!strings.Contains(got.text, answer[len(answer)-len(answer)%40:]) {
			t.Fatalf("%d %v, %d bytes", got.StatusCode, got.err, len(got.text))
		}
	}
	look := func(when string) (counts map[string]int, wrong []testkit.MemoryHit) {
		scan, err := testkit.ScanProcess(cmd.Process.Pid, search)
		if errors.Is(err, fs.ErrPermission) {
			t.Skip("the memory of another process may not be read here")
		}
		if err != nil {
			t.Fatal(err)
		}
		counts = make(map[string]int)
		for _, h := range scan.Hits {
			counts[h.Secret.Row]++
			if h.Secret.Row != "control" && h.Len > registers {
				wrong = append(wrong, h)
			}
		}
		if counts["control"] == 0 {
			t.Errorf("%s: the control was not found", when)
		}
		return counts, wrong
	}
	before, _ := look("at once")
	until("wiped")
	after, wrong := look("wiped")
	for _, h := range wrong {
		t.Errorf("left: %s, between %q and %q", h, h.Before, h.After)
	}
	var rows []string
	for _, s := range secrets {
		if !slices.Contains(rows, s.Row) {
			rows = append(rows, s.Row)
			t.Logf("| %-36s | %4d at once | %4d when wiped |", s.Row, before[s.Row], after[s.Row])
		}
	}
	_, _ = io.WriteString(in, "\n")
}
