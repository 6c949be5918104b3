// Command porcupine judges register histories again and compares with the verdicts they came with.
//
// It reads lines of JSON from standard input, as sim/src/checker/porcupine.rs writes them, and exits
// with 1 if a verdict differs, or if both found fewer histories linearizable, or fewer violated, than
// asked for: checkers that never disagree about good histories prove nothing about bad ones.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/anishathalye/porcupine"
)

const lineBytesMax = 64 << 20

// A history of one register, with the verdict of our own checker.
type history struct {
	Key     string `json:"key"`
	Verdict string `json:"verdict"`
	Steps   []step `json:"steps"`
}

// A step takes effect at one instant from Call to Return, or at any later one if Return is missing.
type step struct {
	Do     string `json:"do"`
	State  int    `json:"state"`
	Call   int64  `json:"call"`
	Return *int64 `json:"return"`
}

// A register of numbers that begins with 0. Steps are inputs; outputs say nothing more.
var register = porcupine.Model{
	Init: func() interface{} { return 0 },
	Step: func(state, input, _ interface{}) (bool, interface{}) {
		step := input.(step)
		if step.Do == "write" {
			return true, step.State
		}
		return state == step.State, state
	},
}

func operations(steps []step) ([]porcupine.Operation, error) {
	var all []porcupine.Operation
	for at, step := range steps {
		if step.Do != "read" && step.Do != "write" {
			return nil, fmt.Errorf("step %d does %q", at, step.Do)
		}
		end := int64(math.MaxInt64)
		if step.Return != nil {
			end = *step.Return
		}
		all = append(all, porcupine.Operation{ClientId: at, Input: step, Call: step.Call, Return: end})
	}
	return all, nil
}

// tally counts verdicts: of both checkers the same, of one of them missing, and different.
type tally struct {
	linearizable, violated, undecided, different int
}

func (t *tally) compare(line int, it history, timeout time.Duration) error {
	all, err := operations(it.Steps)
	if err != nil {
		return err
	}
	theirs := "undecided"
	switch porcupine.CheckOperationsTimeout(register, all, timeout) {
	case porcupine.Ok:
		theirs = "linearizable"
	case porcupine.Illegal:
		theirs = "violated"
	}
	switch {
	case it.Verdict != "linearizable" && it.Verdict != "violated" && it.Verdict != "undecided":
		return fmt.Errorf("unknown verdict %q", it.Verdict)
	case it.Verdict == "undecided" || theirs == "undecided":
		t.undecided++
	case it.Verdict != theirs:
		t.different++
		fmt.Printf("line %d, key %s: ours says %s, porcupine %s\n", line, it.Key, it.Verdict, theirs)
	case theirs == "linearizable":
		t.linearizable++
	default:
		t.violated++
	}
	return nil
}

func compareAll(from io.Reader, timeout time.Duration) (tally, error) {
	var counts tally
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, lineBytesMax)
	for line := 1; lines.Scan(); line++ {
		var it history
		if err := json.Unmarshal(lines.Bytes(), &it); err != nil {
			return counts, fmt.Errorf("line %d: %w", line, err)
		}
		if err := counts.compare(line, it, timeout); err != nil {
			return counts, fmt.Errorf("line %d: %w", line, err)
		}
	}
	return counts, lines.Err()
}

func main() {
	linearizable := flag.Int("linearizable", 1, "how many histories both must have found linearizable")
	violated := flag.Int("violated", 1, "how many histories both must have found violated")
	timeout := flag.Duration("timeout", 300*time.Millisecond, "for each history")
	flag.Parse()
	counts, err := compareAll(os.Stdin, *timeout)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	same := counts.linearizable + counts.violated
	fmt.Printf("%d histories with the same verdict: %d linearizable, %d violated; %d undecided, %d different\n",
		same, counts.linearizable, counts.violated, counts.undecided, counts.different)
	if counts.different > 0 || counts.linearizable < *linearizable || counts.violated < *violated {
		fmt.Printf("wanted are %d linearizable and %d violated ones at least, and none different\n",
			*linearizable, *violated)
		os.Exit(1)
	}
}
