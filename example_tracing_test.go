// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat_test

import (
	"context"
	"fmt"
	"log"
	"net/http"

	"github.com/seed-017344ad/sealedchat"
)

// tracer and span are what of OpenTelemetry is needed here: a trace.Tracer fits behind a few lines
// of adapter.
type tracer interface {
	Start(ctx context.Context, name string) (context.Context, span)
}

type span interface {
	SetAttribute(key string, value any)
	End()
}

// traced is a Transport that makes a span of each attempt. What it sees is ciphertext and the
// protocol's headers.
type traced struct {
	next   http.RoundTripper
	tracer tracer
}

func (t traced) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, span := t.tracer.Start(req.Context(), req.Method+" "+req.URL.Path)
	defer span.End()
	resp, err := t.next.RoundTrip(req.WithContext(ctx))
	if err != nil {
		span.SetAttribute("error.type", fmt.Sprintf("%T", err))
		return nil, err
	}
	span.SetAttribute("http.response.status_code", resp.StatusCode)
	return resp, nil
}

// printTracer stands in for OpenTelemetry.
type printTracer struct{}

func (printTracer) Start(ctx context.Context, name string) (context.Context, span) {
	fmt.Println("span:", name)
	return ctx, printTracer{}
}

func (printTracer) SetAttribute(key string, value any) { fmt.Println(" ", key, value) }
func (printTracer) End()                               {}

// OpenTelemetry, or any other tracing, by wrapping the transport.
func ExampleConfig_transport() {
	url, pin, transport, stop := startServer()
	defer stop()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: url, Trust: sealedchat.Pin(pin), Transport: traced{next: transport,
			tracer: printTracer{}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	_, err = client.Chat(context.Background(), &sealedchat.ChatRequest{
		Model: "demo", Messages: []sealedchat.Message{
			sealedchat.UserMessage("What is the capital of France?")},
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// span: GET /pki/public_key
	//   http.response.status_code 200
	// span: POST /v1/chat/secure_completion
	//   http.response.status_code 200
}
