// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package wycheproof runs project Wycheproof's vectors against the primitives that the envelope is
// made of, used with the envelope's own parameters. It has only tests, in a module of its own:
// the vectors are a download of 109 MB, which users of sealedchat must never make. From this
// folder:
//
//	go test ./...
//
// oaep_test.go and gcm_test.go call the functions of the standard library as sealedchat calls them;
// client_test.go gives the same cases to sealedchat's exported API.
package wycheproof
