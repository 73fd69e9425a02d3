//go:build !race

package workflow

// slowness is how much slower code is without the race detector.
const slowness = 1
