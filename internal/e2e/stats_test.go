// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestStats(t *testing.T) {
	p := newPeer(t)
	p.answer = func(n int, _ *http.Request) (*http.Response, error) {
		switch n {
		case 0:
			return testkit.Respond(http.StatusTooManyRequests, ""), nil
		case 2:
			return testkit.Respond(http.StatusBadRequest, ""), nil
		}
		return p.sealed(testkit.CompletionJSON(sdkAnswer, "")), nil
	}
	keys := memoryStore(t, &sealedchat.KeyStoreOptions{Bits: 2048})
	importKey(t, keys, storedKey(t, "rsa-2048"))
	c := startClient(t, peerURL, func(c *sealedchat.Config) {
		c.Transport, c.Keys, c.MaxRetries = p, keys, 2
	})
	if s := c.Stats(); s.Memory == "" || s != (sealedchat.Stats{Memory: s.Memory}) {
		t.Fatalf("at first: %+v", s)
	}
	raw := `{"model":"m","messages":[{"role":"user","content":"x"}]}`
	answer, err := c.Complete(t.Context(), secret(t, raw)) // 429, then an answer
	if err != nil {
		t.Fatal(err)
	}
	size := int64(answer.Body.Len())
	answer.Body.Destroy()
	if _, err := c.Complete(t.Context(), secret(t, raw)); err == nil { // 400
		t.Fatal("no error")
	}
	if _, err := c.Complete(t.Context(), secret(t, `[]`)); err == nil { // nothing is sealed
		t.Fatal("no error")
	}
	if _, err := c.HTTPClient().Post("https://x.test/v1/chat/completions", "application/json",
		strings.NewReader(raw)); err != nil {
		t.Fatal(err)
	}
	if err := keys.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := c.Stats()
	want := sealedchat.Stats{
		Requests: 4, Failures: 2, Attempts: 4, Retries: 1, BytesSealed: 4 * int64(len(raw)),
		BytesOpened:  2 * size,
		KeyRotations: 1, Memory: got.Memory,
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	c.Close()
	if _, err := c.Chat(t.Context(), ask("x")); err == nil {
		t.Fatal("no error")
	}
	if s := c.Stats(); s.Requests != 5 || s.Failures != 3 || s.InFlight != 0 {
		t.Errorf("closed: %+v", s)
	}
}

func TestStatsInFlight(t *testing.T) {
	const calls = 3
	entered, leave := make(chan struct{}, calls), make(chan struct{})
	p := newPeer(t)
	p.answer = func(int, *http.Request) (*http.Response, error) {
		entered <- struct{}{}
		<-leave
		return p.sealed(testkit.CompletionJSON(sdkAnswer, "")), nil
	}
	c := startClient(t, peerURL, func(c *sealedchat.Config) {
		c.Transport, c.Keys = p, storedKeys(t, "rsa-2048")
	})
	var wg sync.WaitGroup
	for range calls {
		wg.Go(func() {
			if _, err := c.Chat(t.Context(), ask("x")); err != nil {
				t.Error(err)
			}
		})
	}
	for range calls {
		<-entered
	}
	if s := c.Stats(); s.InFlight != calls || s.Requests != calls || s.BytesOpened != 0 {
		t.Errorf("under way: %+v", s)
	}
	close(leave)
	wg.Wait()
	if s := c.Stats(); s.InFlight != 0 || s.Failures != 0 || s.BytesOpened == 0 {
		t.Errorf("afterwards: %+v", s)
	}
}

// TestStatsNames has every field once in JSON and once in a log line, under the same name and with
// its own value.
func TestStatsNames(t *testing.T) {
	for _, v := range []any{&sealedchat.Stats{}, &sealedchat.GatewayStats{}} {
		fields := reflect.ValueOf(v).Elem()
		for i := range fields.NumField() {
			if f := fields.Field(i); f.CanInt() {
				f.SetInt(int64(100 + i))
			} else {
				f.SetString("locked")
			}
		}
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("", "s", v)
		if !strings.Contains(log.String(), `"s":{`) {
			t.Fatal(log.String())
		}
		var logged struct{ S map[string]any }
		var plain map[string]any
		if err := json.Unmarshal(log.Bytes(), &logged); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &plain); err != nil {
			t.Fatal(err)
		}
		if len(plain) != fields.NumField() || !reflect.DeepEqual(plain, logged.S) {
			t.Errorf("JSON %v\nlog  %v", plain, logged.S)
		}
	}
}
