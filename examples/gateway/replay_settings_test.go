// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// A server that forgets when it restarts is reported or refused, at the start and later.
func TestDurability(t *testing.T) {
	server := startRedis(t)
	client, err := connect(server.url(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var text safeBuffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	c := &replays{redis: client, prefix: "t:", margin: time.Minute}
	if err := c.fit(t.Context(), false, log); err != nil ||
		!strings.Contains(text.String(), "appendonly is off") {
		t.Errorf("%v, %s", err, text.String())
	}
	set := func(name, value string) {
		t.Helper()
		if err := client.ConfigSet(t.Context(), name, value).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []string{"appendonly is off", "appendfsync is", ""} {
		switch i {
		case 1:
			set("appendonly", "yes")
		case 2:
			set("appendfsync", "always")
		}
		if err := c.fit(t.Context(), true, log); (err == nil) != (want == "") ||
			err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%d: %v, want %q", i, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.watch(ctx, 10*time.Millisecond, 10*time.Millisecond, true, log)
	}()
	id := byte(0)
	until := func(served bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			id++
			ok, err := c.Claim(t.Context(), [32]byte{id, byte(time.Now().UnixMilli())}, [32]byte{},
				time.Now().Add(time.Second))
			if (err == nil && ok) == served {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("served: %v, %v; want %v", ok, err, served)
			}
		}
	}
	until(true)
	set("appendfsync", "everysec")
	until(false)
	set("appendfsync", "always")
	until(true)
	set("maxmemory-policy", "allkeys-lru")
	set("maxmemory", "100mb")
	until(false)
	cancel()
	<-done
}

// Each client behind the proxy has limits of its own if -address-header is given.
func TestAddressHeaderOfAReplica(t *testing.T) {
	w := newWorld(t)
	for _, r := range w.replicas[:1] {
		if !strings.Contains(r.log.String(), "without -address-header") {
			t.Errorf("the log does not tell: %s", r.log.String())
		}
	}
	r := startReplica(t, "-upstream", w.model.URL+"/v1", "-keys", w.dir, "-replay", w.redis.url(),
		"-allow-unauthenticated", "-address-header", "X-Real-IP")
	send := func(from string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
			r.url+"/.well-known/ohttp-gateway", strings.NewReader("nonsense"))
		if err != nil {
			t.Error(err)
			return 0
		}
		req.Header.Set("Content-Type", ohttp.TypeRequest)
		req.Header.Set("X-Real-IP", from)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			return 0
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	// Many at once: on a busy machine, one after the other would be slower than the limit.
	limited, end := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var wg sync.WaitGroup
	var sent atomic.Int64
	for range 16 {
		wg.Go(func() {
			for !closed(end) && sent.Add(1) < 100_000 {
				if send("192.0.2.1") == http.StatusTooManyRequests {
					once.Do(func() { close(limited) })
				}
			}
		})
	}
	defer wg.Wait()
	defer close(end)
	for !closed(limited) {
		if sent.Load() >= 100_000 {
			t.Fatal("no limit")
		}
		time.Sleep(time.Millisecond)
	}
	for range 20 { // while the first address continues
		if status := send("192.0.2.2"); status == http.StatusTooManyRequests {
			t.Fatalf("another address: %d", status)
		}
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
