// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"strings"
	"testing"
)

func TestOHTTPChat(t *testing.T) {
	g := startTiny(t, answerText("Paris"))
	client := ohttpClient(t, g.url, func(c *Config) {
		c.Trust = Pin(g.key().Fingerprint())
		c.APIKey = secret(t, "sk-inner-5b1f")
	})
	answer, err := client.Chat(t.Context(), ask("What is the capital of France?"))
	if err != nil {
		t.Fatal(err)
	}
	if answer.Text() != "Paris" || !isUUID(answer.PayloadID) {
		t.Errorf("got %q, id %q", answer.Text(), answer.PayloadID)
	}
	h := headerOf(g.last.Header)
	if g.last.Method != "POST" || g.last.Path != "/v1/chat/completions" || h.Get("Authorization") != "Bearer sk-inner-5b1f" {
		t.Errorf("inside: %+v", g.last)
	}
}

func TestOHTTPComplete(t *testing.T) {
	g := startTiny(t, answerText(strings.Repeat("Paris ", 20000)))
	client := ohttpClient(t, g.url, nil)
	body, _ := ask("x").encode()
	r, err := client.Complete(t.Context(), &Request{Body: secret(t, string(body))})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Body.Use(func(b []byte) error { return checkCompletion(b, "", "") }); err != nil {
		t.Error(err)
	}
}
