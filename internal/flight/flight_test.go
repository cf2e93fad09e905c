// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package flight

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var errTest = errors.New("test")

func TestOneRunForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[int]
		var runs atomic.Int32
		fn := func(context.Context) (int, error) {
			time.Sleep(time.Second)
			return int(runs.Add(1)), errTest
		}
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if v, err := g.Do(t.Context(), t.Context(), fn); v != 1 || err != errTest {
					t.Errorf("got %d, %v", v, err)
				}
			})
		}
		wg.Wait()
		// The result is shared, not kept: the next caller runs the function again.
		if v, err := g.Do(t.Context(), t.Context(), fn); v != 2 || err != errTest {
			t.Errorf("second run: %d, %v", v, err)
		}
		g.Close()
	})
}

func TestLeavingDoesNotFailTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[string]
		var cancelled atomic.Bool
		fn := func(ctx context.Context) (string, error) {
			select {
			case <-time.After(time.Minute):
				return "done", nil
			case <-ctx.Done():
				cancelled.Store(true)
				return "", ctx.Err()
			}
		}
		first, leave := context.WithCancelCause(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := g.Do(first, t.Context(), fn); err != errTest {
				t.Errorf("the caller that left: %v, want the cause", err)
			}
		})
		synctest.Wait()
		for range 3 {
			wg.Go(func() {
				if v, err := g.Do(t.Context(), t.Context(), fn); v != "done" || err != nil {
					t.Errorf("a caller that stayed: %q, %v", v, err)
				}
			})
		}
		synctest.Wait()
		leave(errTest)
		wg.Wait()
		if cancelled.Load() {
			t.Error("the run was cancelled although a caller waited")
		}
	})
}

func TestLastOneOutCancels(t *testing.T) {
	for _, keep := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			g := Group[int]{KeepGoing: keep}
			var runs, cancelled, finished atomic.Int32
			fn := func(ctx context.Context) (int, error) {
				n := int(runs.Add(1))
				select {
				case <-ctx.Done():
					cancelled.Add(1)
					time.Sleep(time.Hour) // slow to notice
				case <-time.After(time.Minute):
					finished.Add(1)
				}
				return n, nil
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					if _, err := g.Do(ctx, t.Context(), fn); !errors.Is(err,
						context.DeadlineExceeded) {
						t.Errorf("got %v", err)
					}
				})
			}
			wg.Wait()
			synctest.Wait()
			want := 2 // a new caller does not join a cancelled run
			if keep {
				want = 1
			}
			if v, err := g.Do(t.Context(), t.Context(), fn); err != nil || v != want {
				t.Errorf("keep %v: next caller got %d, %v; want run %d", keep, v, err, want)
			}
			g.Close()
			if (cancelled.Load() == 0) != keep || finished.Load() != 1 {
				t.Errorf("keep %v: %d cancelled, %d finished", keep, cancelled.Load(),
					finished.Load())
			}
		})
	}
}

func TestRunEndsWithLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[int]
		life, end := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { end(errTest) })
		_, err := g.Do(t.Context(), life, func(ctx context.Context) (int, error) {
			<-ctx.Done()
			return 0, context.Cause(ctx)
		})
		if err != errTest {
			t.Errorf("got %v", err)
		}
	})
}

func TestContextOfTheRun(t *testing.T) {
	type key struct{}
	ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, 1), time.Minute)
	defer cancel()
	var g Group[int]
	_, err := g.Do(ctx, t.Context(), func(ctx context.Context) (int, error) {
		if _, ok := ctx.Deadline(); ok || ctx.Value(key{}) != nil {
			t.Error("the run sees one caller's deadline or values")
		}
		return 0, nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestEndedContextStartsNothing(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errTest)
	var g Group[int]
	_, err := g.Do(ctx, t.Context(), func(context.Context) (int, error) {
		t.Error("ran")
		return 0, nil
	})
	if err != errTest {
		t.Errorf("got %v, want the cause", err)
	}
	g.Close()
}

func TestPanicReachesEveryWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[int]
		var caught atomic.Int32
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				defer func() {
					if p := recover(); p == errTest {
						caught.Add(1)
					} else {
						t.Errorf("recovered %v", p)
					}
				}()
				_, _ = g.Do(t.Context(), t.Context(), func(context.Context) (int, error) {
					time.Sleep(time.Second)
					panic(errTest)
				})
				t.Error("returned")
			})
		}
		wg.Wait()
		if caught.Load() != 10 {
			t.Errorf("%d of 10 got the panic", caught.Load())
		}
		if v, err := g.Do(t.Context(), t.Context(), func(context.Context) (int, error) {
			return 7, nil
		}); v != 7 || err != nil {
			t.Errorf("after a panic: %d, %v", v, err)
		}
	})
}

// A panic must not be lost because its value is nil, and no caller may wait forever for a function
// that ended its goroutine.
func TestOddExits(t *testing.T) {
	var g Group[int]
	func() {
		defer func() {
			if recover() == nil {
				t.Error("panic(nil) was lost")
			}
		}()
		_, _ = g.Do(t.Context(), t.Context(), func(context.Context) (int, error) {
			panic(any(nil))
		})
	}()
	_, err := g.Do(t.Context(), t.Context(), func(context.Context) (int, error) {
		runtime.Goexit()
		return 0, nil
	})
	if err != errExited {
		t.Errorf("after Goexit: %v", err)
	}
	// A panic of a run that all callers have left stays in the run.
	synctest.Test(t, func(t *testing.T) {
		var g Group[int]
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _ = g.Do(ctx, t.Context(), func(ctx context.Context) (int, error) {
			<-ctx.Done()
			panic(errTest)
		})
		g.Close()
	})
}

func TestWaitWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[int]
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var ended atomic.Bool
		_, _ = g.Do(ctx, t.Context(), func(context.Context) (int, error) {
			time.Sleep(time.Hour)
			ended.Store(true)
			return 0, nil
		})
		g.Close()
		if !ended.Load() {
			t.Error("Close returned before the abandoned run ended")
		}
	})
}

// Many goroutines have contexts that end at any time. No caller hangs, and no caller gets half a
// value.
func TestStorm(t *testing.T) {
	var g Group[[2]int64]
	var n atomic.Int64
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for j := range 50 {
				ctx, cancel := context.WithTimeout(t.Context(),
					time.Duration((i*7+j*13)%40)*10*time.Microsecond)
				v, err := g.Do(ctx, t.Context(), func(ctx context.Context) ([2]int64, error) {
					k := n.Add(1)
					runtime.Gosched()
					return [2]int64{k, k}, ctx.Err()
				})
				if err == nil && (v[0] != v[1] || v[0] == 0) {
					t.Errorf("got %v", v)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	g.Close()
}
