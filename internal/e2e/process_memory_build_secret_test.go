// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux && goexperiment.runtimesecret

package e2e_test

// runtimeSecret: built with GOEXPERIMENT=runtimesecret, so that runtime/secret erases what
// crypto/rsa leaves.
const runtimeSecret = true
