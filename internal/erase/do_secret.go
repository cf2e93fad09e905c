// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build goexperiment.runtimesecret && linux && (amd64 || arm64)

package erase

import "runtime/secret"

// RuntimeSecret reports whether this build has runtime/secret.
const RuntimeSecret = true

func do(f func()) { secret.Do(f) }
