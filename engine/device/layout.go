package device

// #include "infinite/device.h"
import "C"

import (
	"reflect"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/model"
)

// mirror is a C struct and the Go struct that views its memory.
type mirror struct{ c, golang reflect.Type }

// mirrors lists every struct that Go and C share by layout; a test compares them field by field.
func mirrors() []mirror {
	return []mirror{
		{reflect.TypeFor[C.inf_step_head](), reflect.TypeFor[batch.Head]()},
		{reflect.TypeFor[C.inf_step_seq](), reflect.TypeFor[batch.Seq]()},
		{reflect.TypeFor[C.inf_step_span](), reflect.TypeFor[batch.Span]()},
		{reflect.TypeFor[C.inf_step_row](), reflect.TypeFor[batch.Row]()},
		{reflect.TypeFor[C.inf_row_out](), reflect.TypeFor[batch.RowOut]()},
		{reflect.TypeFor[C.inf_seq_out](), reflect.TypeFor[batch.SeqOut]()},
		{reflect.TypeFor[C.inf_sampling](), reflect.TypeFor[batch.Sampling]()},
		{reflect.TypeFor[C.inf_device_stats](), reflect.TypeFor[Stats]()},
	}
}

// constants pairs the numbers of the C header with their Go copies.
func constants() map[string][2]int64 {
	return map[string][2]int64{
		"INF_MAX_TOP":               {C.INF_MAX_TOP, batch.MaxTop},
		"INF_MAX_DRAFTS":            {C.INF_MAX_DRAFTS, batch.MaxDrafts},
		"INF_MAX_WAVES":             {C.INF_MAX_WAVES, batch.MaxWaves},
		"INF_I8_GROUP":              {C.INF_I8_GROUP, model.Int8Group},
		"INF_DTYPE_I4_32":           {C.INF_DTYPE_I4_32, int64(model.I4x32)},
		"INF_DTYPE_I4_64":           {C.INF_DTYPE_I4_64, int64(model.I4x64)},
		"INF_DTYPE_I4_128":          {C.INF_DTYPE_I4_128, int64(model.I4x128)},
		"INF_MAX_EXPERTS":           {C.INF_MAX_EXPERTS, model.MaxExperts},
		"INF_MAX_EXPERTS_PER_TOKEN": {C.INF_MAX_EXPERTS_PER_TOKEN, model.MaxTopExperts},
		"INF_ROLE_DOWN":             {C.INF_ROLE_DOWN, int64(model.Down)},
		"INF_ROLE_ROUTER":           {C.INF_ROLE_ROUTER, int64(model.Router)},
		"INF_ROLE_EXPERT_DOWN":      {C.INF_ROLE_EXPERT_DOWN, int64(model.ExpertDown)},
		"INF_ROLE_SHARED_ROUTER":    {C.INF_ROLE_SHARED_ROUTER, int64(model.SharedRouter)},
		"INF_ROLE_MLP_POST_NORM":    {C.INF_ROLE_MLP_POST_NORM, int64(model.MLPPostNorm)},
		"INF_OK":                    {C.INF_OK, int64(batch.StatusOK)},
		"INF_EPEER":                 {C.INF_EPEER, int64(batch.StatusPeer)},
		"INF_ETIMEOUT":              {C.INF_ETIMEOUT, int64(batch.StatusTimeout)},
		"INF_EPROTO":                {C.INF_EPROTO, int64(batch.StatusProto)},
		"INF_ESTALE":                {C.INF_ESTALE, int64(batch.StatusStale)},
		"INF_ENOTFINITE":            {C.INF_ENOTFINITE, int64(batch.StatusNotFinite)},
		"INF_STEP_EMPTY_REMOTE":     {C.INF_STEP_EMPTY_REMOTE, int64(batch.FlagEmptyRemote)},
		"INF_STEP_NO_MASKS":         {C.INF_STEP_NO_MASKS, int64(batch.FlagNoMasks)},
		"inf_mask_words":            {int64(C.inf_mask_words(65)), int64(batch.MaskWords(65))},
	}
}
