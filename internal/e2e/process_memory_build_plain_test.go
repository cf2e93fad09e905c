// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux && !goexperiment.runtimesecret

package e2e_test

// runtimeSecret: not built with GOEXPERIMENT=runtimesecret.
const runtimeSecret = false
