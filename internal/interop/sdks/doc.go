// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package interop asks a gateway through other people's SDKs: openai-go, go-openai, langchaingo,
// and eino's component for OpenAI. Each one gets the HTTPClient of a SecureCompletionClient, over
// both protocols. It holds only tests, in a module of its own: users of sealedchat must not depend
// on the SDKs. From this folder:
//
//	go test ./...
//
// The table in docs/troubleshooting.md of how an SDK sees each kind of error is that of TestErrors.
package interop
