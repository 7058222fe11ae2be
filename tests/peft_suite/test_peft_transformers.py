"""PEFT's tests of transformers models: decoders, Conv1D, encoder-decoder, feature extraction, classification."""

from hub_models import MODELS
from sdist import load

for module, models, cls in (
    ("test_decoder_models", "PEFT_DECODER_MODELS_TO_TEST", "TestDecoderModels"),
    ("test_encoder_decoder_models", "PEFT_ENCODER_DECODER_MODELS_TO_TEST", "TestEncoderDecoderModels"),
    ("test_feature_extraction_models", "PEFT_FEATURE_EXTRACTION_MODELS_TO_TEST", "TestPeftFeatureExtractionModel"),
    ("test_seq_classifier", "PEFT_SEQ_CLS_MODELS_TO_TEST", "TestSequenceClassificationModels"),
):
    globals().update(load(module, [cls], models=(models, MODELS)))
