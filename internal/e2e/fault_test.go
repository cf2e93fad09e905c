// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const (
	faultPrompt = "FAULT-PROMPT-41d7"
	faultAnswer = "FAULT-ANSWER-9e02"
	// a call that takes longer hangs: no clock is looked at more closely than that
	faultSlack = time.Minute
)

// faultDocumented are the errors that calls are documented to end in, but for *ServerKeyError.
var faultDocumented = []error{
	sealedchat.ErrInvalidRequest, sealedchat.ErrAuthentication, sealedchat.ErrPermission,
	sealedchat.ErrNotFound, sealedchat.ErrRateLimited, sealedchat.ErrServer,
	sealedchat.ErrUnavailable, sealedchat.ErrConnection,
	sealedchat.ErrEnvelope, sealedchat.ErrDecryption, sealedchat.ErrResponseSchema,
	sealedchat.ErrReplay, sealedchat.ErrTierDowngrade, sealedchat.ErrTooLarge,
	sealedchat.ErrPublicKey,
}

// faultAnswerTo is the one right answer to a prompt.
func faultAnswerTo(prompt string) string {
	sum := sha256.Sum256([]byte(prompt))
	return fmt.Sprintf("%s %x %s", faultAnswer, sum, strings.Repeat("é ", int(sum[0])))
}

// faultUpstream answers with faultAnswerTo the prompt.
func faultUpstream(w http.ResponseWriter, r *http.Request) {
	var req struct{ Messages []struct{ Content string } }
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || len(req.Messages) != 1 {
		w.WriteHeader(400)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, testkit.CompletionJSON(faultAnswerTo(req.Messages[0].Content), ""))
}

// faultWorld is what all sequences share.
type faultWorld struct {
	addr       string // of the gateway
	pin        string
	clientKeys *sealedchat.KeyStore

	mu       sync.Mutex
	outcomes map[string]int
	faults   map[testkit.Fault]int
}

func (w *faultWorld) count(outcome string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.outcomes[outcome]++
}

// enough reports whether calls have succeeded and failed in all the ways that make the test worth
// something.
func (w *faultWorld) enough(successes int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.outcomes["success"] >= successes && len(w.outcomes) >= 8 &&
		len(w.faults) >= testkit.FaultKinds
}

// Whatever happens between client and gateway, a call ends in time, with the right answer or with
// an error that is documented. A sequence that failed is repeated with SEALEDCHAT_SEED. On a busy
// machine fewer calls succeed in their time, so there are as many sequences as it takes, the later
// ones with more time.
func TestFaultSequences(t *testing.T) {
	testkit.NoLeaks(t)
	seed, least, most, successes := testkit.Seed(t), 120, 10_000, 60
	if testkit.Long() {
		least, successes = 500, 100
	}
	repeated := os.Getenv("SEALEDCHAT_SEED") != ""
	if repeated {
		least, most = 1, 1
	}
	g := startGateway(t, http.HandlerFunc(faultUpstream), func(c *sealedchat.GatewayConfig) {
		c.Keys = storedKeys(t, "rsa-2048")
	})
	srv := httptest.NewServer(g)
	t.Cleanup(srv.Close)
	witness := testkit.NewWitness(t, srv.Listener.Addr().String())
	w := &faultWorld{
		addr: witness.Addr(), pin: publicOf(t, "rsa-2048").Fingerprint(),
		clientKeys: storedKeys(t, "rsa-2048"),
		outcomes:   make(map[string]int), faults: make(map[testkit.Fault]int),
	}
	next := make(chan int)
	var wg sync.WaitGroup
	for range 16 { // most of them wait for something
		wg.Go(func() {
			for i := range next {
				w.sequence(t, seed+uint64(i), 1<<min(i/least, 5))
			}
		})
	}
	for i := 0; i < least || i < most && !w.enough(successes); i++ {
		next <- i
	}
	close(next)
	wg.Wait()
	witness.MustNotSee(faultPrompt, faultAnswer)
	t.Logf("outcomes: %v; faults: %v", w.outcomes, w.faults)
	if !repeated && !w.enough(successes) {
		t.Error("this proves little")
	}
}

// sequence makes some calls with one client through one fault proxy. All times in it are multiplied
// by patience.
func (w *faultWorld) sequence(t *testing.T, seed uint64, patience time.Duration) {
	r := rand.New(rand.NewPCG(seed, 1<<63))
	proxy := testkit.NewFaultProxy(t, w.addr, seed)
	defer func() {
		proxy.Close()
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, fault := range proxy.Faults() {
			w.faults[fault]++
		}
	}()
	cfg := sealedchat.Config{
		BaseURL: "http://" + proxy.Addr(), InsecureAllowHTTP: true, Keys: w.clientKeys,
		Trust:   sealedchat.TrustHTTPS(),
		Timeout: patience * 250 * time.Millisecond, MaxRetries: []int{-1, 1, 2, 4}[r.IntN(4)],
	}
	if r.IntN(2) == 0 {
		cfg.Trust = sealedchat.Pin(w.pin)
	}
	client, err := sealedchat.NewSecureCompletionClient(cfg)
	if err != nil {
		t.Error(err)
		return
	}
	defer client.Close()
	for call := range 1 + r.IntN(3) {
		deadline := patience * time.Duration(20+r.IntN(1500)) * time.Millisecond
		prompt := fmt.Sprintf("%s %d/%d", faultPrompt, seed, call)
		kind := []string{"Chat", "Complete", "HTTPClient", "stream"}[r.IntN(4)]
		begin := time.Now()
		text, err := w.call(t, client, kind, prompt, deadline)
		took := time.Since(begin)
		if problem := w.judge(prompt, text, err); problem != "" || took > deadline+faultSlack {
			t.Errorf("SEALEDCHAT_SEED=%d: call %d (%s, deadline %v) took %v: %s; faults: %q", seed,
				call, kind, deadline, took, problem, proxy.Faults())
		}
	}
}

// call makes one call and returns the answer's text.
func (w *faultWorld) call(t *testing.T, client *sealedchat.SecureCompletionClient, kind,
	prompt string, deadline time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	body, _ := json.Marshal(map[string]any{"model": "m",
		"messages": []any{sealedchat.UserMessage(prompt)}, "stream": kind == "stream"})
	switch kind {
	case "Chat":
		answer, err := client.Chat(ctx, ask(prompt))
		if err != nil {
			return "", err
		}
		return answer.Text(), nil
	case "Complete":
		request := sealedchat.NewSecret(body)
		defer request.Destroy()
		answer, err := client.Complete(ctx, request)
		if err != nil {
			return "", err
		}
		defer answer.Body.Destroy()
		parsed := &sealedchat.ChatResponse{}
		err = answer.Body.Use(parsed.UnmarshalJSON)
		return parsed.Text(), err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, sdkURL,
		strings.NewReader(string(body)))
	if err != nil {
		return "", err
	}
	resp, err := client.HTTPClient().Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	return w.sdkText(resp, kind == "stream")
}

// sdkText reads a response as an SDK does.
func (w *faultWorld) sdkText(resp *http.Response, stream bool) (string, error) {
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", fmt.Errorf("a response that cannot be read: %w", err)
	}
	if resp.StatusCode != 200 {
		var doc struct {
			Error struct{ Message, Type string }
		}
		if err := json.Unmarshal(body, &doc); err != nil || doc.Error.Message == "" ||
			resp.StatusCode < 400 {
			return "", fmt.Errorf("status %d without OpenAI's error: %q", resp.StatusCode, body)
		}
		return "", &sealedchat.APIError{StatusCode: resp.StatusCode, Detail: doc.Error.Type}
	}
	if !stream {
		parsed := &sealedchat.ChatResponse{}
		err := parsed.UnmarshalJSON(body)
		return parsed.Text(), err
	}
	events, ok := strings.CutSuffix(string(body), "data: [DONE]\n\n")
	if !ok {
		return "", errors.New("the stream does not end")
	}
	var text strings.Builder
	for event := range strings.SplitSeq(strings.TrimSpace(events), "\n\n") {
		var chunk struct {
			Choices []struct{ Delta struct{ Content string } }
		}
		if err := json.Unmarshal([]byte(strings.TrimPrefix(event, "data: ")), &chunk); err != nil {
			return "", err
		}
		for _, choice := range chunk.Choices {
			text.WriteString(choice.Delta.Content)
		}
	}
	return text.String(), nil
}

// judge says what is wrong with a call's end, "" if nothing is.
func (w *faultWorld) judge(prompt, text string, err error) string {
	if err == nil {
		if text != faultAnswerTo(prompt) {
			return fmt.Sprintf("a wrong answer: %.200q", text)
		}
		w.count("success")
		return ""
	}
	message := err.Error()
	for _, r := range message {
		if !unicode.IsPrint(r) {
			return fmt.Sprintf("not printable: %.300q", message)
		}
	}
	if strings.Contains(message, faultPrompt) || strings.Contains(message, faultAnswer) ||
		len(message) > 1000 {
		return fmt.Sprintf("content, or too much: %.300q", message)
	}
	if _, ok := errors.AsType[*sealedchat.ServerKeyError](err); ok {
		w.count("ServerKeyError")
		return ""
	}
	for _, documented := range append([]error{context.DeadlineExceeded}, faultDocumented...) {
		if errors.Is(err, documented) {
			w.count(strings.TrimPrefix(documented.Error(), "sealedchat: "))
			return ""
		}
	}
	return fmt.Sprintf("not documented: %v (%T)", err, err)
}
