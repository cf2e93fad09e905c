// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

func TestRememberedErrorsAreBounded(t *testing.T) {
	var m rememberedErrors
	retry := retried(t, http.MethodPost, "/v1/x")
	if m.recall(retry, []byte("x")) != nil {
		t.Error("the zero value remembers something")
	}
	m.remember(retry, nil, io.EOF)
	for i := range 5000 {
		body := []byte(strconv.Itoa(i))
		m.remember(retry, body, fmt.Errorf("error %d", i))
		if len(m.calls) > maxRemembered {
			t.Fatalf("%d calls are remembered after %d", len(m.calls), i)
		}
		if err := m.recall(retry, body); err == nil || err.Error() != "error "+string(body) {
			t.Fatalf("the newest call is forgotten: %v", err)
		}
	}
	if m.recall(retry, []byte("0")) != nil {
		t.Error("the oldest call of 5000 is remembered")
	}
}

func TestRememberedErrorsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m rememberedErrors
		retry := retried(t, http.MethodPost, "/v1/x")
		m.remember(retry, []byte("old"), io.EOF)
		time.Sleep(rememberFor - time.Second)
		if m.recall(retry, []byte("old")) != io.EOF {
			t.Error("forgotten too early")
		}
		m.remember(retry, []byte("new"), io.EOF)
		time.Sleep(2 * time.Second)
		if m.recall(retry, []byte("old")) != nil || m.recall(retry, []byte("new")) != io.EOF {
			t.Error("not forgotten in time, or too early")
		}
		time.Sleep(rememberFor)
		m.remember(retry, []byte("newest"), io.EOF)
		if len(m.calls) != 1 {
			t.Errorf("%d calls are kept", len(m.calls))
		}
	})
}

// retried is a request that an SDK repeats.
func retried(t *testing.T, method, uri string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://sdk.test"+uri, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Stainless-Retry-Count", "1")
	return req
}

// Requests are the same if method, path, query and body are.
func TestRememberedErrorsAreOfOneRequest(t *testing.T) {
	var m rememberedErrors
	m.remember(retried(t, http.MethodPost, "/v1/a?b=c"), []byte("x"), io.EOF)
	if m.recall(retried(t, http.MethodPost, "/v1/a?b=c"), []byte("x")) != io.EOF {
		t.Error("not remembered")
	}
	for _, other := range []struct{ method, uri, body string }{
		{"POST", "/v1/a?b=c", ""}, {"POST", "/v1/a?b=c", "xx"}, {"POST", "/v1/a?b=d", "x"}, {"POST", "/v1/a", "x"}, {"POST", "/v1/b?b=c", "x"},
		{"PUT", "/v1/a?b=c", "x"}, {"GET", "/v1/a?b=c", "x"}, {"POST", "/v1/a?b=", "cx"},
	} {
		if err := m.recall(retried(t, other.method, other.uri), []byte(other.body)); err != nil {
			t.Errorf("%v: %v", other, err)
		}
	}
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		m.remember(retried(t, method, "/v1/a"), []byte{}, io.EOF)
		if m.recall(retried(t, method, "/v1/a"), []byte{}) != nil {
			t.Errorf("%s is remembered", method)
		}
	}
	m.remember(retried(t, http.MethodPost, "/v1/a"), []byte{}, io.EOF)
	if m.recall(retried(t, http.MethodPost, "/v1/a"), []byte{}) != io.EOF {
		t.Error("a POST without a body is not remembered")
	}
}

// An SDK's key lies in the memory that the client's policy asks for.
func TestHTTPClientTokenUnderPolicy(t *testing.T) {
	for _, policy := range []MemoryPolicy{MemoryBestEffort, MemoryOff} {
		client := startClient(t, "https://peer.example", func(c *Config) { c.Transport, c.Memory = neverUsed(t), policy })
		req, err := http.NewRequest(http.MethodPost, "https://peer.example/v1/chat/completions", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer sk-1")
		_, key, err := (&sdkTransport{client: client}).callOptions(req)
		if err != nil || key.Locked() != (policy != MemoryOff && secret(t, "another").Locked()) {
			t.Errorf("%v: locked %v, %v", policy, key.Locked(), err)
		}
		key.Destroy()
	}
}
