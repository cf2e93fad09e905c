// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	goopenai "github.com/sashabaranov/go-openai"

	"github.com/seed-017344ad/sealedchat"
)

// Both SDKs: how a program makes their clients today, and with the line that seals them. A test
// compares the functions.

func plainOpenAI(apiKey string) openai.Client {
	return openai.NewClient(
		option.WithAPIKey(apiKey),
	)
}

func sealedOpenAI(apiKey string, client *sealedchat.SecureCompletionClient) openai.Client {
	return openai.NewClient(
		option.WithAPIKey(apiKey),
		option.WithHTTPClient(client.HTTPClient()), // the one line
	)
}

func plainGoOpenAI(key, url string) *goopenai.Client {
	config := goopenai.DefaultConfig(key)
	config.BaseURL = url
	return goopenai.NewClientWithConfig(config)
}

func sealedGoOpenAI(key, url string, client *sealedchat.SecureCompletionClient) *goopenai.Client {
	config := goopenai.DefaultConfig(key)
	config.BaseURL = url
	config.HTTPClient = client.HTTPClient() // the one line
	return goopenai.NewClientWithConfig(config)
}
