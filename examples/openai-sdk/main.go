// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Command openai-sdk asks a question through openai-go or go-openai, sealed. The program is the
// same as without sealedchat, except that it makes a client once and gives it to the SDK in one
// line:
//
//	client := openai.NewClient(
//		option.WithAPIKey(apiKey),
//		option.WithHTTPClient(sealed.HTTPClient()), // the one line
//	)
//
//	config := goopenai.DefaultConfig(apiKey)
//	config.HTTPClient = sealed.HTTPClient() // the one line
//	client := goopenai.NewClientWithConfig(config)
//
// Run it against a gateway (see examples/gateway) or a NOMYO server:
//
//	OPENAI_API_KEY=… go run . -url https://inference.example.com -pin cb27375f… \
//		"What is the capital of France?"
//
// The client sends the API key of the SDK only because the base URL of the SDK has the origin of
// -url; it does not send a key that belongs to another server. Chat completions are sealed and go
// to -url. Every other endpoint of the SDK is refused, and nothing is sent. Streams are made from
// the complete answer: they work, and their first word arrives when the last one has arrived.
//
// With -protocol ohttp, against a gateway that speaks Oblivious HTTP, every endpoint that the
// gateway allows is sealed, and streams arrive as the model sends them. Exit status: 0 for success,
// 1 if there was no answer, 2 for wrong input.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	goopenai "github.com/sashabaranov/go-openai"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

func main() {
	p := &openaiSDK{env: os.Getenv, stdout: os.Stdout, stderr: os.Stderr}
	os.Exit(p.run(program.Signals(), os.Args[1:]))
}

// openaiSDK has the surroundings of a run, which tests replace.
type openaiSDK struct {
	env            func(string) string
	stdout, stderr io.Writer
	keys           *sealedchat.KeyStore // for answers; nil = the program makes keys

	server   program.Server
	model    string
	sdk      string
	insecure bool
	question string
}

const keyVariable = "OPENAI_API_KEY"

func help() program.Usage {
	return program.Usage{
		Lines: []string{"openai-sdk -url URL [flags] question"},
		Variables: []program.Variable{
			{Name: "NOMYO_SERVER_URL", Text: "replaces -url"},
			{Name: "NOMYO_SERVER_PIN", Text: "replaces -pin"},
			{Name: keyVariable, Text: "the API key for the server"},
		},
	}
}

// run is the program. It returns its exit status.
func (p *openaiSDK) run(ctx context.Context, args []string) int {
	err := p.parse(args)
	var answer string
	if err == nil {
		answer, err = p.ask(ctx)
	}
	if err == nil {
		_, err = fmt.Fprintln(p.stdout, answer)
	}
	return program.Exit(p.stderr, "openai-sdk", err, func(err error) (string, int) {
		return p.server.Explain(ctx, err) // finds the cause through the SDK's own error
	})
}

func (p *openaiSDK) parse(args []string) error {
	f := flag.NewFlagSet("openai-sdk", flag.ContinueOnError)
	p.server.Flags(f, sealedchat.ProtocolEnvelope)
	f.Lookup("url").Usage = "the server's `URL`, without /v1 (required)"
	f.StringVar(&p.model, "model", "Qwen/Qwen3-0.6B", "the `model`")
	f.StringVar(&p.sdk, "sdk", "openai-go", "the SDK: openai-go or go-openai: `name`")
	f.BoolVar(&p.insecure, "insecure-http", false, "allow http to loopback")
	if err := program.Parse(f, args, help(), p.stdout, p.stderr); err != nil {
		return err
	}
	if err := p.server.Check(f, p.env); err != nil {
		return err
	}
	p.question = f.Arg(0)
	switch {
	case p.server.URL == "":
		return program.WrongInput("-url is required (see openai-sdk -h)")
	case p.sdk != "openai-go" && p.sdk != "go-openai":
		return program.WrongInput("-sdk: %q is not openai-go or go-openai", p.sdk)
	case f.NArg() != 1:
		return program.WrongInput("%d arguments, want one question", f.NArg())
	}
	return nil
}

// ask asks the question through the SDK.
func (p *openaiSDK) ask(ctx context.Context) (string, error) {
	config, transport := p.server.Config(p.stderr)
	defer transport.CloseIdleConnections()
	config.Keys, config.InsecureAllowHTTP = p.keys, p.insecure
	sealed, err := sealedchat.NewSecureCompletionClient(config)
	if err != nil {
		return "", err
	}
	defer sealed.Close()
	key, base := p.env(keyVariable), p.server.URL+"/v1"
	if p.sdk == "go-openai" {
		return askGoOpenAI(ctx, sealedGoOpenAI(key, base, sealed), p.model, p.question)
	}
	return askOpenAI(ctx, sealedOpenAI(key, sealed), base, p.model, p.question)
}

func askOpenAI(ctx context.Context, client openai.Client, baseURL, model, question string) (string,
	error) {
	answer, err := client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{
		Model:    model,
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(question)},
	}, option.WithBaseURL(baseURL))
	if err != nil {
		return "", err
	}
	if len(answer.Choices) == 0 {
		return "", errors.New("no answer")
	}
	return answer.Choices[0].Message.Content, nil
}

func askGoOpenAI(ctx context.Context, client *goopenai.Client, model, question string) (string,
	error) {
	answer, err := client.CreateChatCompletion(ctx, goopenai.ChatCompletionRequest{
		Model: model,
		Messages: []goopenai.ChatCompletionMessage{{Role: goopenai.ChatMessageRoleUser,
			Content: question}},
	})
	if err != nil {
		return "", err
	}
	if len(answer.Choices) == 0 {
		return "", errors.New("no answer")
	}
	return answer.Choices[0].Message.Content, nil
}
