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
// With -ohttp, against a gateway that speaks Oblivious HTTP, every endpoint that the gateway allows
// is sealed, and streams arrive as the model sends them.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	goopenai "github.com/sashabaranov/go-openai"

	"github.com/seed-017344ad/sealedchat"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv("OPENAI_API_KEY"), nil, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "openai-sdk:", err)
		// found through the SDK's own error
		if wrong, ok := errors.AsType[*sealedchat.ServerKeyError](err); ok {
			fmt.Fprintln(os.Stderr, "if the server's key has changed on purpose, use -pin",
				cmp.Or(wrong.Signer, wrong.Got))
		}
		os.Exit(1)
	}
}

// run is the program. Answers are sealed to keys; with nil the program makes keys, which takes a
// moment.
func run(ctx context.Context, args []string, apiKey string, keys *sealedchat.KeyStore,
	out io.Writer) error {
	flags := flag.NewFlagSet("openai-sdk", flag.ContinueOnError)
	url := flags.String("url", "", "the server's `URL`, without /v1")
	pin := flags.String("pin", "", "the server key's `fingerprint`; without it HTTPS is trusted")
	model := flags.String("model", "Qwen/Qwen3-0.6B", "the `model`")
	sdk := flags.String("sdk", "openai-go", "openai-go or go-openai")
	ohttp := flags.Bool("ohttp", false, "seal with Oblivious HTTP, in place of NOMYO's version 1")
	insecure := flags.Bool("insecure-http", false, "allow http to loopback")
	if err := flags.Parse(args); err != nil {
		return err
	}
	config := sealedchat.Config{BaseURL: *url, Keys: keys, Trust: sealedchat.TrustHTTPS(),
		InsecureAllowHTTP: *insecure}
	if *ohttp {
		config.Protocol = sealedchat.ProtocolOHTTP
	}
	if *pin != "" {
		config.Trust = sealedchat.Pin(*pin)
	}
	sealed, err := sealedchat.NewSecureCompletionClient(config)
	if err != nil {
		return err
	}
	defer sealed.Close()

	var answer string
	switch *sdk {
	case "openai-go":
		answer, err = askOpenAI(ctx, sealedOpenAI(apiKey, sealed), *url+"/v1", *model, flags.Arg(0))
	case "go-openai":
		answer, err = askGoOpenAI(ctx, sealedGoOpenAI(apiKey, *url+"/v1", sealed), *model,
			flags.Arg(0))
	default:
		err = fmt.Errorf("there is no SDK %q here", *sdk)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, answer)
	return err
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
