// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const (
	costVariable = "SEALEDCHAT_COST" // runs TestCost
	aloneURL     = "PROXY_TEST_ALONE"
)

// alone makes requests through HTTPClient, without a proxy, as often as a line of standard input
// says, and prints the processor's time for them, and the median of the time to the first byte. The
// line says how the answer comes.
func alone() int {
	o := &options{}
	p := &proxy{env: os.Getenv, stdout: os.Stdout, stderr: os.Stderr, wipe: func() {}}
	o, err := p.parse(strings.Split(os.Getenv(aloneURL), "\n"))
	if err != nil {
		return 1
	}
	e, done, err := p.newEndpoint(o, &secrets{})
	if err != nil {
		return 1
	}
	defer done()
	fmt.Println("ready: yes")
	for {
		var n int
		var stream bool
		if _, err := fmt.Scanln(&n, &stream); err != nil {
			return 0
		}
		before := testkit.CPUTime()
		first, err := costRequests(n, e.http, o.server.URL, stream)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Printf("took: %d\nfirst: %d\n", testkit.CPUTime()-before, first)
	}
}

// costRequests makes n requests, and returns the median of the time to the first byte.
func costRequests(n int, c *http.Client, url string, stream bool) (time.Duration, error) {
	var first []time.Duration
	for range n {
		took, err := costRequest(c, url, stream)
		if err != nil {
			return 0, err
		}
		first = append(first, took)
	}
	return testkit.Median(first), nil
}

func costRequest(c *http.Client, url string, stream bool) (first time.Duration, err error) {
	begun := time.Now()
	body := question
	if stream {
		body = streamed
	}
	resp, err := c.Post(url+"/v1/chat/completions", "application/json", strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if _, err = io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
		return 0, err
	}
	first = time.Since(begun)
	_, err = io.Copy(io.Discard, resp.Body)
	if err == nil && resp.StatusCode != 200 {
		err = fmt.Errorf("status %d", resp.StatusCode)
	}
	return first, err
}

// costModel answers with 1 KB, or with a stream of 100 pieces that come one by one.
func costModel(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if bytes.Contains(body, []byte(`"stream":true`)) {
		pieces(func(send func(string)) {
			for range 100 {
				send("a word or ")
				time.Sleep(time.Millisecond) // as from a model: pieces do not come together
			}
		})(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprintf(w, `{"id":"c","object":"chat.completion","created":1,"model":"m","choices":`+
		`[{"index":0,"message":{"role":"assistant","content":"%s"},"finish_reason":"stop"}]}`,
		strings.Repeat("a", 1000))
}

// TestCost compares the processor's time of a proxy with that of a program that uses HTTPClient
// itself, each in a process of its own.
func TestCost(t *testing.T) {
	if os.Getenv(costVariable) == "" {
		t.Skip("run with " + costVariable + "=1")
	}
	for _, protocol := range []sealedchat.Protocol{sealedchat.ProtocolOHTTP,
		sealedchat.ProtocolEnvelope} {
		remote := newRemote(t, protocol, costModel)
		args := strings.Join(remote.args("-listen", "127.0.0.1:0", "-protocol", string(protocol)), "\n")
		direct := startCost(t, aloneURL+"="+args, "ready")
		through := startCost(t, asChild+"="+args, "listening")
		for _, stream := range []bool{false, true} {
			n := 400
			if stream {
				n = 40
			}
			var ratios []float64
			var aloneTime, proxyTime, aloneFirst, proxyFirst time.Duration
			for range 5 {
				aloneTime, aloneFirst = direct.measure(n, stream)
				before := through.ticks()
				var err error
				if proxyFirst, err = costRequests(n, through.client, through.said, stream); err != nil {
					t.Fatal(err)
				}
				proxyTime = through.ticks() - before
				ratios = append(ratios, float64(proxyTime)/float64(aloneTime))
			}
			slices.Sort(ratios)
			t.Logf("%s, stream %v: HTTPClient alone %v, proxy %v a request; ratio %.2f (%.2f to %.2f); "+
				"to the first byte %v and %v", protocol, stream, aloneTime/time.Duration(n),
				proxyTime/time.Duration(n), ratios[2], ratios[0], ratios[4], aloneFirst, proxyFirst)
		}
	}
}

type costProcess struct {
	t      *testing.T
	in     io.Writer
	lines  func(name string) string
	pid    int
	said   string
	client *http.Client
}

func startCost(t *testing.T, env, ready string) *costProcess {
	cmd := testkit.Child(t, []string{env})
	in, out := testkit.StartChild(t, cmd)
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	p := &costProcess{t: t, in: in, pid: cmd.Process.Pid, client: &http.Client{
		Transport: &http.Transport{DisableCompression: true}}}
	t.Cleanup(p.client.CloseIdleConnections)
	p.lines = func(name string) string {
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
	p.said = p.lines(ready)
	return p
}

func (p *costProcess) measure(n int, stream bool) (took, first time.Duration) {
	_, _ = fmt.Fprintln(p.in, n, stream)
	for i, name := range []string{"took", "first"} {
		n, err := strconv.ParseInt(p.lines(name), 10, 64)
		if err != nil {
			p.t.Fatal(err)
		}
		*[]*time.Duration{&took, &first}[i] = time.Duration(n)
	}
	return took, first
}

// ticks is the processor's time of the process, in steps of 10 ms.
func (p *costProcess) ticks() time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		p.t.Fatal(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+2:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}
