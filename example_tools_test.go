// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"

	"github.com/seed-017344ad/sealedchat"
)

// weatherModel asks for the weather, and then tells it; in pieces if it is to stream.
func weatherModel(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var request struct{ Stream bool }
	_ = json.Unmarshal(body, &request)
	switch {
	case request.Stream:
		w.Header().Set("Content-Type", "text/event-stream")
		for _, delta := range []string{
			`{"role":"assistant","tool_calls":[{"index":0,"id":"call-1","type":"function","function":{"name":"weather","arguments":""}}]}`,
			`{"tool_calls":[{"index":0,"function":{"arguments":"{\"city\":"}}]}`,
			`{"tool_calls":[{"index":0,"function":{"arguments":"\"Paris\"}"}}]}`,
		} {
			_, _ = io.WriteString(w, `data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"demo","choices":[{"index":0,"delta":`+delta+"}]}\n\n")
		}
		_, _ = io.WriteString(w, "data: [DONE]\n\n")
	case strings.Contains(string(body), `"role":"tool"`):
		_, _ = io.WriteString(w, `{"id":"2","object":"chat.completion","created":1,"model":"demo","choices":[
			{"index":0,"message":{"role":"assistant","content":"It rains in Paris."},"finish_reason":"stop"}]}`)
	default:
		_, _ = io.WriteString(w, `{"id":"1","object":"chat.completion","created":1,"model":"demo","choices":[{"index":0,"finish_reason":"tool_calls",
			"message":{"role":"assistant","content":null,"tool_calls":[{"id":"call-1","type":"function",
			"function":{"name":"weather","arguments":"{\"city\":\"Paris\"}"}}]}}]}`)
	}
}

// The model has a function called, and answers with its result.
func ExampleFunctionTool() {
	url, _, transport, stop := startGateway(weatherModel, sealedchat.GatewayConfig{AllowUnauthenticated: true})
	defer stop()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: url, Protocol: sealedchat.ProtocolOHTTP, Trust: sealedchat.TrustHTTPS(), Transport: transport,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	schema := json.RawMessage(`{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}`)
	request := &sealedchat.ChatRequest{
		Model:    "demo",
		Messages: []sealedchat.Message{sealedchat.UserMessage("How is the weather in Paris?")},
		Tools:    []sealedchat.Tool{sealedchat.FunctionTool("weather", "The weather in a city now", schema)},
	}
	for range 5 { // however often the model asks
		answer, err := client.Chat(context.Background(), request)
		if err != nil {
			log.Fatal(err)
		}
		if len(answer.Choices) == 0 || len(answer.Choices[0].Message.ToolCalls) == 0 {
			fmt.Println(answer.Text())
			return
		}
		message := answer.Choices[0].Message
		request.Messages = append(request.Messages, message)
		for _, call := range message.ToolCalls {
			var arguments struct{ City string }
			if err := json.Unmarshal([]byte(call.Function.Arguments), &arguments); err != nil { // the model wrote it
				log.Fatal(err)
			}
			fmt.Println(call.Function.Name, arguments.City)
			request.Messages = append(request.Messages, sealedchat.ToolMessage(call.ID, "rain"))
		}
	}
	// Output:
	// weather Paris
	// It rains in Paris.
}

// A stream is shown as it comes, and is a complete answer at its end, tool calls too.
func ExampleChatAccumulator() {
	url, _, transport, stop := startGateway(weatherModel, sealedchat.GatewayConfig{AllowUnauthenticated: true})
	defer stop()
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: url, Protocol: sealedchat.ProtocolOHTTP, Trust: sealedchat.TrustHTTPS(), Transport: transport,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	var whole sealedchat.ChatAccumulator
	for chunk, err := range client.Stream(context.Background(), &sealedchat.ChatRequest{
		Model: "demo", Messages: []sealedchat.Message{sealedchat.UserMessage("How is the weather in Paris?")},
	}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(chunk.Text()) // what there is of text
		whole.Add(chunk)
	}
	for _, call := range whole.Response().Choices[0].Message.ToolCalls {
		fmt.Println(call.ID, call.Function.Name, call.Function.Arguments)
	}
	// Output: call-1 weather {"city":"Paris"}
}
