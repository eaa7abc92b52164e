package trace

import "fmt"

// Mark is one of the functions of csrc/dist/marks.h; its number is what the function returns.
type Mark uint8

// The marks. A query has seven stages and a move of blocks the first six of them.
const (
	queryMarks Mark = 1
	moveMarks  Mark = queryMarks + Mark(stages)
	StepBegun  Mark = moveMarks + Mark(moveStages)
	StepSeq    Mark = StepBegun + 1
	StepEnded  Mark = StepSeq + 1
	lastMark        = StepEnded
)

// Stage is a point in a message's life.
type Stage int

// The stages in their order. The home sees Posted, Wire, Back and Merged, the creditor the others.
const (
	Posted   Stage = iota // the message is written, the link does not have it yet
	Wire                  // the link took it
	Arrived               // the creditor found it
	Computed              // the partials are computed, or the blocks lie in the pool
	Returned              // the link took the answer
	Back                  // the home found the answer
	Merged                // the partials are in the home's own, or on a GPU queued to be
	stages
	moveStages = Merged
)

var stageNames = [stages]string{"posted", "wire", "arrived", "computed", "returned", "back", "merged"}

func (s Stage) String() string { return stageNames[s] }

// atHome says at which end the stage is.
func (s Stage) atHome() bool { return s < Arrived || s > Returned }

// Kind is what a message is for.
type Kind string

// The two lanes.
const (
	Query Kind = "query"
	Move  Kind = "move"
)

// Of is the mark of a stage of a kind of message.
func Of(k Kind, s Stage) Mark {
	if k == Move {
		return moveMarks + Mark(s)
	}
	return queryMarks + Mark(s)
}

// Marks lists all.
func Marks() []Mark {
	all := make([]Mark, lastMark)
	for i := range all {
		all[i] = Mark(i + 1)
	}
	return all
}

// message says which stage of what message the mark is; false for the marks of steps.
func (m Mark) message() (Kind, Stage, bool) {
	switch {
	case m >= queryMarks && m < moveMarks:
		return Query, Stage(m - queryMarks), true
	case m >= moveMarks && m < StepBegun:
		return Move, Stage(m - moveMarks), true
	}
	return "", 0, false
}

// Symbol is the C function's name.
func (m Mark) Symbol() string {
	switch m {
	case StepBegun:
		return "inf_mark_step_begun"
	case StepSeq:
		return "inf_mark_step_seq"
	case StepEnded:
		return "inf_mark_step_ended"
	}
	if kind, stage, ok := m.message(); ok {
		return fmt.Sprintf("inf_mark_%s_%s", kind, stage)
	}
	return fmt.Sprintf("inf_mark_%d", m)
}
