// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"encoding"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
)

const secretMarker = "marker-7f3a9c-secret"

func TestSecretUse(t *testing.T) {
	input := []byte(secretMarker)
	s, err := NewSecret(input)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Destroy()
	if !bytes.Equal(input, make([]byte, len(secretMarker))) {
		t.Errorf("the input was not wiped: %q", input)
	}
	if s.Len() != len(secretMarker) {
		t.Errorf("Len is %d", s.Len())
	}
	sentinel := errors.New("from f")
	err = s.Use(func(b []byte) error {
		if string(b) != secretMarker || cap(b) != len(b) {
			t.Errorf("got %q, cap %d", b, cap(b))
		}
		b[0] = 'M' // f may change the bytes
		return s.Use(func(b []byte) error {
			if b[0] != 'M' {
				t.Error("a nested Use sees other bytes")
			}
			return sentinel
		})
	})
	if err != sentinel {
		t.Errorf("Use returned %v", err)
	}
}

func TestSecretAfterDestroy(t *testing.T) {
	destroyed := secret(t, secretMarker)
	destroyed.Destroy()
	destroyed.Destroy()
	empty := secret(t, "")
	empty.Destroy()
	for name, s := range map[string]*Secret{"destroyed": destroyed, "nil": nil, "empty": empty, "zero": {}} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if p := recover(); p != nil {
					t.Errorf("panic: %v", p)
				}
			}()
			err := s.Use(func([]byte) error { t.Error("f was called"); return nil })
			if !errors.Is(err, ErrClosed) {
				t.Errorf("Use: %v", err)
			}
			if s.Len() != 0 || s.Locked() {
				t.Errorf("Len %d, Locked %v", s.Len(), s.Locked())
			}
			s.Destroy()
			if text := fmt.Sprint(s); !strings.Contains(text, redacted) && s != nil {
				t.Errorf("prints as %q", text)
			}
		})
	}
}

func TestEmptySecret(t *testing.T) {
	s := secret(t, "")
	called := false
	if err := s.Use(func(b []byte) error { called = len(b) == 0; return nil }); err != nil || !called {
		t.Errorf("Use: %v, called %v", err, called)
	}
	if s.Locked() {
		t.Error("nothing cannot be locked")
	}
}

// Destroy within Use, or beside it, leaves the bytes to those who use them, and nobody new comes in.
func TestSecretDestroyWithinUse(t *testing.T) {
	s := secret(t, secretMarker)
	err := s.Use(func(b []byte) error {
		s.Destroy()
		if string(b) != secretMarker {
			t.Errorf("wiped while in use: %q", b)
		}
		if s.buf == nil {
			t.Error("given back while in use")
		}
		return s.Use(func([]byte) error { t.Error("a Use after Destroy got in"); return nil })
	})
	if !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if s.buf != nil {
		t.Error("not wiped when the last Use returned")
	}
}

func TestSecretDestroyWaitsForPanickingUse(t *testing.T) {
	s := secret(t, secretMarker)
	func() {
		defer func() { _ = recover() }()
		_ = s.Use(func([]byte) error { s.Destroy(); panic("x") })
	}()
	if s.buf != nil || s.users != 0 {
		t.Error("a panic in Use keeps the bytes")
	}
}

func TestSecretConcurrency(t *testing.T) {
	for range 20 {
		s := secret(t, secretMarker)
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				for range 20 {
					err := s.Use(func(b []byte) error {
						if string(b) != secretMarker { // wiped or unmapped memory would show, or fault
							t.Errorf("got %q", b)
						}
						return nil
					})
					if err != nil && !errors.Is(err, ErrClosed) {
						t.Error(err)
					}
					_, _ = s.Len(), s.Locked()
				}
			})
			if i == 8 {
				wg.Go(s.Destroy)
			}
		}
		wg.Wait()
		if s.buf != nil {
			t.Fatal("never wiped")
		}
	}
}

// holders have a secret where printers and encoders find it in different ways.
type (
	exportedHolder   struct{ Key *Secret }
	unexportedHolder struct{ key *Secret }
	valueHolder      struct{ Key Secret }
	hiddenHolder     struct{ key Secret }
	anyHolder        struct {
		Any  any
		List []*Secret
		Map  map[string]*Secret
		Keys map[*Secret]int
	}
)

func TestSecretIsRedacted(t *testing.T) {
	s := secret(t, secretMarker)
	value, hidden := &valueHolder{}, &hiddenHolder{}
	for _, own := range []*Secret{&value.Key, &hidden.key} {
		own.buf = secret(t, secretMarker).buf
	}
	things := map[string]any{
		"pointer": s, "field": exportedHolder{s}, "field of pointer": &exportedHolder{s},
		"unexported field": unexportedHolder{s}, "pointer to it": &unexportedHolder{s},
		"by value": value, "by value, unexported": hidden,
		"containers":         anyHolder{s, []*Secret{s}, map[string]*Secret{"k": s}, map[*Secret]int{s: 1}},
		"pointer to pointer": &s, "request": &Request{Body: s}, "response": Response{Body: s},
		"config": Config{APIKey: s}, "gateway config": GatewayConfig{UpstreamKey: s},
	}
	for name, v := range things {
		var outputs []string
		for _, verb := range "vsdqxXTtbcoOUeEfFgGp" {
			for _, flags := range []string{"", "+", "#", "-30", "030", " ", "+#"} {
				outputs = append(outputs, fmt.Sprintf("%"+flags+string(verb), v))
			}
		}
		outputs = append(outputs, fmt.Sprint(v), fmt.Sprintln(v), fmt.Errorf("%v", v).Error())
		if b, err := json.Marshal(v); err == nil {
			outputs = append(outputs, string(b))
		}
		if b, err := xml.Marshal(v); err == nil {
			outputs = append(outputs, string(b))
		}
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v, slog.Group("g", "v", v))
		slog.New(slog.NewTextHandler(&log, nil)).With("w", v).Info("x", "v", v)
		outputs = append(outputs, log.String())
		for _, out := range outputs {
			for _, form := range []string{secretMarker, fmt.Sprintf("%x", secretMarker), fmt.Sprintf("%X", secretMarker),
				strings.Trim(fmt.Sprint([]byte(secretMarker)), "[]"), strings.Trim(fmt.Sprintf("%#v", []byte(secretMarker)), "[]byte{}")} {
				if strings.Contains(out, form) {
					at := strings.Index(out, form)
					t.Fatalf("%s: the secret is in …%q…", name, out[max(0, at-100):at+len(form)])
				}
			}
		}
	}
}

func TestSecretSaysSo(t *testing.T) {
	s := secret(t, secretMarker)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%T", "%10s"} {
		want := redacted
		if verb == "%T" {
			want = "*sealedchat.Secret"
		}
		if got := fmt.Sprintf(verb, s); got != want {
			t.Errorf("%s gives %q", verb, got)
		}
	}
	b, err := json.Marshal(map[string]any{"s": s, "h": exportedHolder{s}, "l": []*Secret{s}})
	if want := `{"h":{"Key":"[REDACTED]"},"l":["[REDACTED]"],"s":"[REDACTED]"}`; err != nil || string(b) != want {
		t.Errorf("JSON: %s, %v", b, err)
	}
	var text encoding.TextMarshaler = s
	if b, err := text.MarshalText(); err != nil || string(b) != redacted {
		t.Errorf("text: %s, %v", b, err)
	}
	if v := slog.AnyValue(s).Resolve(); v.String() != redacted {
		t.Errorf("slog: %v", v)
	}
}
