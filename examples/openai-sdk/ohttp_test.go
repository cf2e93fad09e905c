// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
	goopenai "github.com/sashabaranov/go-openai"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// Both SDKs over Oblivious HTTP: streams arrive as the upstream sends them, and other endpoints
// work, too.

// overOHTTP returns a witness, behind it a gateway in front of upstream, and a client that pins the
// key witness, and a client that pins its key configuration.
func overOHTTP(t *testing.T, upstream http.Handler) (*testkit.Witness,
	*sealedchat.SecureCompletionClient) {
	t.Helper()
	up := httptest.NewServer(upstream)
	t.Cleanup(up.Close)
	gatewayKeys, _ := keys()
	secret := sealedchat.NewSecret([]byte(goodKey))
	defer secret.Destroy()
	authenticate, err := sealedchat.AuthenticateKeys(secret)
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := sealedchat.NewGateway(sealedchat.GatewayConfig{Upstream: up.URL + "/v1",
		Keys: gatewayKeys, Authenticate: authenticate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gateway.Close() })
	server := httptest.NewServer(gateway)
	t.Cleanup(server.Close)
	witness := testkit.NewWitness(t, server.Listener.Addr().String())
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: "http://" + witness.Addr(), InsecureAllowHTTP: true,
		Protocol: sealedchat.ProtocolOHTTP,
		Trust:    sealedchat.Pin(configOf(t, gateway)), MaxRetries: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return witness, client
}

// paced is an upstream that streams words, each one on demand. end says how the stream ends.
type paced struct {
	next chan struct{}
	end  string // "" = as it should; "cut", "quiet" = without [DONE]
}

var pacedWords = []string{answer, " to ", prompt}

func (p *paced) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "text/event-stream")
	for i, word := range pacedWords {
		if i > 0 {
			<-p.next
		}
		fmt.Fprintf(w,
			`data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m",`+
				`"choices":[{"index":0,"delta":{"content":%q}}]}`+"\n\n", word)
		w.(http.Flusher).Flush()
	}
	switch p.end {
	case "cut":
		panic(http.ErrAbortHandler)
	case "quiet":
		return
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
}

// streams runs a test with both SDKs: each word must arrive before the upstream makes the next one,
// and a stream that does not end correctly must give an error.
func streams(t *testing.T, read func(t *testing.T, client *sealedchat.SecureCompletionClient,
	base string, word func(string)) error) {
	for _, end := range []string{"", "cut", "quiet"} {
		t.Run("end "+end, func(t *testing.T) {
			up := &paced{next: make(chan struct{}, 1), end: end}
			witness, client := overOHTTP(t, up)
			var got []string
			err := read(t, client, "http://"+witness.Addr()+"/v1", func(word string) {
				if word == "" {
					return
				}
				got = append(got, word)
				up.next <- struct{}{}
			})
			if strings.Join(got, "|") != strings.Join(pacedWords, "|") {
				t.Errorf("got %q", got)
			}
			if end == "" && err != nil || end != "" && !errors.Is(err, sealedchat.ErrTruncated) {
				t.Errorf("ended with %v", err)
			}
			witness.MustNotSee(prompt, answer, "chat/completions", goodKey, "chat.completion",
				"event-stream")
		})
	}
}

func TestOpenAIStreamsOverOHTTP(t *testing.T) {
	streams(t, func(t *testing.T, client *sealedchat.SecureCompletionClient, base string,
		word func(string)) error {
		sdk := openai.NewClient(option.WithAPIKey(goodKey), option.WithBaseURL(base),
			option.WithHTTPClient(client.HTTPClient()))
		stream := sdk.Chat.Completions.NewStreaming(t.Context(), openAIParams())
		defer stream.Close()
		for stream.Next() {
			for _, c := range stream.Current().Choices {
				word(c.Delta.Content)
			}
		}
		return stream.Err()
	})
}

func TestGoOpenAIStreamsOverOHTTP(t *testing.T) {
	streams(t, func(t *testing.T, client *sealedchat.SecureCompletionClient, base string,
		word func(string)) error {
		stream, err := sealedGoOpenAI(goodKey, base, client).CreateChatCompletionStream(t.Context(),
			goOpenAIRequest(false))
		if err != nil {
			return err
		}
		defer stream.Close()
		for {
			chunk, err := stream.Recv()
			if errors.Is(err, io.EOF) && !errors.Is(err, sealedchat.ErrTruncated) {
				return nil
			}
			if err != nil {
				return err
			}
			word(chunk.Choices[0].Delta.Content)
		}
	})
}

func TestOpenAIOverOHTTP(t *testing.T) {
	mux := http.NewServeMux()
	chat := &upstream{}
	mux.Handle("/v1/chat/completions", chat)
	asJSON := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, text)
		}
	}
	mux.HandleFunc("GET /v1/models",
		asJSON(`{"object":"list","data":[{"id":"m1","object":"model"}]}`))
	mux.HandleFunc("POST /v1/embeddings",
		asJSON(`{"object":"list","data":[{"object":"embedding","index":0,`+
			`"embedding":[0.5]}],"model":"m"}`))
	mux.HandleFunc("POST /v1/responses", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w,
			"event: response.output_text.delta\ndata: "+
				"{\"type\":\"response.output_text.delta\",\"delta\":\"hello\"}\n\n"+
				"event: response.completed\ndata: {\"type\":\"response.completed\"}\n\n")
	})
	witness, client := overOHTTP(t, mux)
	sdk := openai.NewClient(option.WithAPIKey(goodKey),
		option.WithBaseURL("http://"+witness.Addr()+"/v1"),
		option.WithHTTPClient(client.HTTPClient()))

	whole, err := sdk.Chat.Completions.New(t.Context(), openAIParams())
	if err != nil || whole.Choices[0].Message.Content != answer+" to "+prompt {
		t.Errorf("%v, %v", whole, err)
	}
	models, err := sdk.Models.List(t.Context())
	if err != nil || len(models.Data) != 1 || models.Data[0].ID != "m1" {
		t.Errorf("%v, %v", models, err)
	}
	embeddings, err := sdk.Embeddings.New(t.Context(), openai.EmbeddingNewParams{
		Model: "m", Input: openai.EmbeddingNewParamsInputUnion{OfString: openai.String(prompt)},
	})
	if err != nil || embeddings.Data[0].Embedding[0] != 0.5 {
		t.Errorf("%v, %v", embeddings, err)
	}
	stream := sdk.Responses.NewStreaming(t.Context(),
		responses.ResponseNewParams{Model: "m",
			Input: responses.ResponseNewParamsInputUnion{OfString: openai.String(prompt)}})
	var said string
	for stream.Next() {
		said += stream.Current().Delta
	}
	if stream.Err() != nil || said != "hello" {
		t.Errorf("%q, %v", said, stream.Err())
	}
	_, err = sdk.Files.List(t.Context(), openai.FileListParams{})
	if refused, ok := errors.AsType[*openai.Error](err); !ok || refused.StatusCode != 404 {
		t.Errorf("an endpoint that is not allowed: %v", err)
	}
	wrong := openai.NewClient(option.WithAPIKey(wrongKey),
		option.WithBaseURL("http://"+witness.Addr()+"/v1"),
		option.WithHTTPClient(client.HTTPClient()))
	_, err = wrong.Chat.Completions.New(t.Context(), openAIParams())
	if refused, ok := errors.AsType[*openai.Error](err); !ok || refused.StatusCode != 401 {
		t.Errorf("a wrong key: %v", err)
	}
	chat.mu.Lock()
	defer chat.mu.Unlock()
	if chat.posts != 1 {
		t.Errorf("%d chats reached the upstream", chat.posts)
	}
	witness.MustNotSee(prompt, answer, "/v1/models", "embeddings", "/v1/responses", goodKey,
		wrongKey, "OpenAI/Go")
}

func TestGoOpenAIOverOHTTP(t *testing.T) {
	witness, client := overOHTTP(t, &upstream{})
	got, err := sealedGoOpenAI(goodKey, "http://"+witness.Addr()+"/v1",
		client).CreateChatCompletion(t.Context(), goOpenAIRequest(false))
	if err != nil || got.Choices[0].Message.Content != answer+" to "+prompt {
		t.Errorf("%v, %v", got, err)
	}
	_, err = sealedGoOpenAI(wrongKey, "http://"+witness.Addr()+"/v1",
		client).CreateChatCompletion(t.Context(), goOpenAIRequest(false))
	if refused, ok := errors.AsType[*goopenai.APIError](err); !ok || refused.HTTPStatusCode != 401 {
		t.Errorf("a wrong key: %v", err)
	}
	witness.MustNotSee(prompt, answer, goodKey, wrongKey)
}
