"""Many slices in one DICOM object: enhanced MR, CT and PET, and the mosaics of Siemens."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from hostile_objects import Stack, Who, _text, header, pixels
from pydicom.dataset import Dataset
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    MRImageStorage,
)

CLASSES = {
    "MR": EnhancedMRImageStorage, "CT": EnhancedCTImageStorage, "PT": EnhancedPETImageStorage,
}  # fmt: skip


def _item(**values: Any) -> Dataset:
    d = Dataset()
    for keyword, value in values.items():
        setattr(d, keyword, value)
    return d


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """A coded concept (PS3.3 8.8)."""
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def enhanced(
    frames: Sequence[Stack],
    who: Who,
    *,
    modality: str = "MR",
    b_values: Sequence[float] = (),
    slopes: Sequence[float] = (),
    shuffle: bool = True,
) -> Dataset:
    """One multi-frame object (PS3.3 A.36, A.38, A.56).

    Args:
        frames: One stack per frame of the 4-D image.
        who: Identity.
        modality: MR, CT or PT.
        b_values: One per stack; without them several stacks are points in time.
        slopes: Rescale slope of each plane; 1 without.
        shuffle: Whether the frames are stored in no order, as the standard allows.
    """
    first = frames[0]
    d = header(who, modality, CLASSES[modality], "enhanced")
    kind = ["ORIGINAL", "PRIMARY", "DIFFUSION" if b_values else "VOLUME", "NONE"]
    d.ImageType, d.PixelPresentation, d.VolumetricProperties = kind, "MONOCHROME", "VOLUME"
    d.VolumeBasedCalculationTechnique, d.ContentQualification = "NONE", "RESEARCH"
    d.FrameOfReferenceUID, d.PositionReferenceIndicator = who.uid(who.study, "for"), ""
    d.PatientPosition, d.AcquisitionNumber, d.BurnedInAnnotation = "HFS", 1, "NO"
    d.LossyImageCompression, d.PresentationLUTShape = "00", "IDENTITY"
    d.AcquisitionDateTime, d.AcquisitionDuration = "20200102101500", 60.0
    d.AcquisitionContextSequence = []
    _modality_modules(d, modality)
    places = [(plane, time) for plane in range(len(first.origins)) for time in range(len(frames))]
    if shuffle:
        places = [places[n] for n in np.random.default_rng(who.seed).permutation(len(places))]
    _dimensions(d, who, bool(b_values), len(frames) > 1)
    shared = Dataset()
    shared.PixelMeasuresSequence = [_item(
        PixelSpacing=[_text(first.spacing[1]), _text(first.spacing[0])],
        SliceThickness=_text(first.thickness), SpacingBetweenSlices=_text(first.thickness),
    )]  # fmt: skip
    shared.PlaneOrientationSequence = [_item(
        ImageOrientationPatient=[_text(v) for v in (*first.row, *first.column)]
    )]  # fmt: skip
    shared.FrameAnatomySequence = [_item(
        FrameLaterality="U", AnatomicRegionSequence=[code("69536005", "SCT", "Head")]
    )]  # fmt: skip
    frame_type = _item(
        FrameType=kind, PixelPresentation="MONOCHROME", VolumetricProperties="VOLUME",
        VolumeBasedCalculationTechnique="NONE",
    )  # fmt: skip
    _modality_groups(shared, modality, frame_type)
    d.SharedFunctionalGroupsSequence = [shared]
    d.PerFrameFunctionalGroupsSequence = [
        _frame(first, plane, time, len(frames), b_values, slopes, modality)
        for plane, time in places
    ]
    d.NumberOfFrames = len(places)
    pixels(d, np.stack([frames[time].values[..., plane] for plane, time in places], axis=-1))
    return d


def _dimensions(d: Dataset, who: Who, diffusion: bool, several: bool) -> None:
    """What the dimension index counts (PS3.3 C.7.6.17)."""
    uid = who.uid(who.series, "dimensions")
    d.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=uid)]
    pointers = [(0x00209056, 0x00209111)]  # Stack ID in Frame Content
    pointers.append((0x00209057, 0x00209111))  # In-Stack Position Number
    if several:
        pointers.append((0x00189087, 0x00189117) if diffusion else (0x00209128, 0x00209111))
    d.DimensionIndexSequence = [
        _item(DimensionOrganizationUID=uid, DimensionIndexPointer=tag, FunctionalGroupPointer=group)
        for tag, group in pointers
    ]


def _frame(
    first: Stack,
    plane: int,
    time: int,
    times: int,
    b_values: Sequence[float],
    slopes: Sequence[float],
    modality: str,
) -> Dataset:
    own = Dataset()
    index = [1, plane + 1, time + 1][: 3 if times > 1 else 2]
    moment = f"20200102{10 + time:02d}1500"
    own.FrameContentSequence = [_item(
        StackID="1", InStackPositionNumber=plane + 1, DimensionIndexValues=index,
        TemporalPositionIndex=1 if b_values else time + 1, FrameAcquisitionNumber=1,
        FrameReferenceDateTime=moment, FrameAcquisitionDateTime=moment,
        FrameAcquisitionDuration=1000.0,
    )]  # fmt: skip
    own.PlanePositionSequence = [
        _item(ImagePositionPatient=[_text(v) for v in first.origins[plane]])
    ]
    if b_values:
        b = float(b_values[time])
        own.MRDiffusionSequence = [_item(
            DiffusionDirectionality="DIRECTIONAL" if b else "NONE", DiffusionBValue=b
        )]  # fmt: skip
        if b:
            own.MRDiffusionSequence[0].DiffusionGradientDirectionSequence = [
                _item(DiffusionGradientOrientation=[1.0, 0.0, 0.0])
            ]
    own.PixelValueTransformationSequence = [_item(
        RescaleIntercept="-1024" if modality == "CT" else "0",
        RescaleSlope=_text(slopes[plane]) if slopes else "1",
        RescaleType={"CT": "HU", "MR": "US", "PT": "US"}[modality],
    )]  # fmt: skip
    own.FrameVOILUTSequence = [_item(WindowCenter="1000", WindowWidth="2000")]
    return own


def _modality_modules(d: Dataset, modality: str) -> None:
    """What the standard asks of the whole object."""
    if modality == "MR":
        d.ResonantNucleus, d.KSpaceFiltering, d.MagneticFieldStrength = "1H", "NONE", 3.0
        d.ApplicableSafetyStandardAgency, d.ComplexImageComponent = "IEC", "MAGNITUDE"
        d.AcquisitionContrast, d.PulseSequenceName = "FLUID_ATTENUATED", "SE"
        d.MRAcquisitionType, d.EchoPulseSequence, d.MultipleSpinEcho = "2D", "SPIN", "NO"
        d.MultiPlanarExcitation, d.PhaseContrast, d.TimeOfFlightContrast = "NO", "NO", "NO"
        d.SteadyStatePulseSequence, d.EchoPlanarPulseSequence = "NONE", "NO"
        d.SaturationRecovery, d.SpectrallySelectedSuppression = "NO", "NONE"
        d.OversamplingPhase, d.GeometryOfKSpaceTraversal = "NONE", "RECTILINEAR"
        d.RectilinearPhaseEncodeReordering, d.SegmentedKSpaceTraversal = "LINEAR", "SINGLE"
        d.NumberOfKSpaceTrajectories = 1
    elif modality == "PT":
        _pet_modules(d)


def _pet_modules(d: Dataset) -> None:
    """Isotope, acquisition and corrections (PS3.3 C.8.22): SUV needs what stands here.

    Decay is corrected to 10:15, an hour after the injection.
    """
    d.Units, d.CountsSource, d.PatientWeight, d.CollimatorType = "BQML", "EMISSION", "80", "NONE"
    d.RadiopharmaceuticalInformationSequence = [_item(
        RadiopharmaceuticalAgentNumber=1,
        RadionuclideCodeSequence=[code("C-111A1", "SRT", "^18^Fluorine")],
        RadiopharmaceuticalCodeSequence=[code("C-B1031", "SRT", "Fluorodeoxyglucose F^18^")],
        AdministrationRouteCodeSequence=[code("47625008", "SCT", "Intravenous route")],
        RadiopharmaceuticalStartDateTime="20200102091500", RadionuclideTotalDose="400000000",
        RadionuclideHalfLife="6586.2", RadionuclidePositronFraction="0.97",
        RadiopharmaceuticalVolume="5",
    )]  # fmt: skip
    d.TypeOfDetectorMotion, d.TableMotion = "NONE", "STATIC"
    d.AcquisitionStartCondition, d.AcquisitionTerminationCondition = "MANU", "TIME"
    d.AcquisitionStartConditionData, d.AcquisitionTerminationConditionData = "0", "120"
    d.TransverseDetectorSeparation, d.AxialDetectorDimension = 1.0, 4.0
    d.CoincidenceWindowWidth, d.TimeOfFlightInformationUsed = 4.0, "FALSE"
    d.EnergyWindowRangeSequence = [
        _item(EnergyWindowLowerLimit="435", EnergyWindowUpperLimit="650")
    ]
    view = code("62824007", "SCT", "Transverse")
    view.ViewModifierCodeSequence = []
    d.ViewCodeSequence, d.SliceProgressionDirection = [view], "CRANIAL"
    for correction in (
        "DecayCorrected", "AttenuationCorrected", "ScatterCorrected", "DeadTimeCorrected",
        "CountLossNormalizationCorrected", "RandomsCorrected",
    ):  # fmt: skip
        setattr(d, correction, "YES")
    d.GantryMotionCorrected = d.PatientMotionCorrected = "NO"
    d.NonUniformRadialSamplingCorrected, d.SensitivityCalibrated = "NO", "YES"
    d.DetectorNormalizationCorrection, d.DecayCorrectionDateTime = "YES", "20200102101500"
    d.ScatterCorrectionMethod, d.AttenuationCorrectionSource = "model", "CT"
    d.AttenuationCorrectionTemporalRelationship = "CONCURRENT"
    d.RandomsCorrectionMethod, d.TerminationTimeThreshold = "DLYD", 120.0


def _modality_groups(shared: Dataset, modality: str, frame_type: Dataset) -> None:
    """Functional groups that all frames share (PS3.3 C.8.13.5 for MR)."""
    if modality == "CT":
        _ct_groups(shared, frame_type)
    elif modality == "PT":
        _pet_groups(shared, frame_type)
    else:
        _mr_groups(shared, frame_type)


def _ct_groups(shared: Dataset, frame_type: Dataset) -> None:
    """PS3.3 C.8.15.3."""
    shared.CTImageFrameTypeSequence = [frame_type]
    shared.IrradiationEventIdentificationSequence = [_item(IrradiationEventUID="1.2.3.4")]
    shared.CTAcquisitionTypeSequence = [_item(
        AcquisitionType="SPIRAL", ConstantVolumeFlag="NO", FluoroscopyFlag="NO"
    )]  # fmt: skip
    shared.CTAcquisitionDetailsSequence = [_item(
        RotationDirection="CW", RevolutionTime=0.5, SingleCollimationWidth=0.6,
        TotalCollimationWidth=19.2, TableHeight=150.0, GantryDetectorTilt="0",
        DataCollectionDiameter="500",
    )]  # fmt: skip
    shared.CTTableDynamicsSequence = [_item(
        TableSpeed=20.0, TableFeedPerRotation=10.0, SpiralPitchFactor=0.5
    )]  # fmt: skip
    shared.CTPositionSequence = [_item(
        TablePosition=0.0, DataCollectionCenterPatient=[0.0, 0.0, 0.0],
        ReconstructionTargetCenterPatient=[0.0, 0.0, 0.0],
    )]  # fmt: skip
    shared.CTGeometrySequence = [_item(
        DistanceSourceToDetector="1000", DistanceSourceToDataCollectionCenter=500.0
    )]  # fmt: skip
    shared.CTReconstructionSequence = [_item(
        ReconstructionAlgorithm="FILTER_BACK_PROJ", ConvolutionKernel="B30",
        ConvolutionKernelGroup="BRAIN", ReconstructionDiameter="192", ReconstructionAngle=360.0,
        ImageFilter="none", ReconstructionPixelSpacing=shared.PixelMeasuresSequence[0].PixelSpacing,
    )]  # fmt: skip
    shared.CTExposureSequence = [_item(
        ExposureTimeInms=500.0, XRayTubeCurrentInmA=200.0, ExposureInmAs=100.0,
        ExposureModulationType="NONE", CTDIvol=10.0,
    )]  # fmt: skip
    shared.CTXRayDetailsSequence = [_item(
        KVP="120", FocalSpots="1.2", FilterType="FLAT", FilterMaterial="ALUMINUM"
    )]  # fmt: skip


def _pet_groups(shared: Dataset, frame_type: Dataset) -> None:
    """PS3.3 C.8.22.5."""
    shared.PETFrameTypeSequence = [frame_type]
    shared.RadiopharmaceuticalUsageSequence = [_item(RadiopharmaceuticalAgentNumber=1)]
    shared.PETFrameAcquisitionSequence = [_item(
        TableHeight=150.0, GantryDetectorTilt="0", GantryDetectorSlew=0.0,
        DataCollectionDiameter="500",
    )]  # fmt: skip
    shared.PETDetectorMotionDetailsSequence = [_item(RotationDirection="CW", RevolutionTime=1.0)]
    shared.PETPositionSequence = [_item(
        TablePosition=0.0, DataCollectionCenterPatient=[0.0, 0.0, 0.0],
        ReconstructionTargetCenterPatient=[0.0, 0.0, 0.0],
    )]  # fmt: skip
    shared.PETFrameCorrectionFactorsSequence = [_item(
        PrimaryPromptsCountsAccumulated=1000, SliceSensitivityFactor=1.0, DecayFactor=1.0,
        ScatterFractionFactor=0.1, DeadTimeFactor=1.0,
    )]  # fmt: skip
    shared.PETReconstructionSequence = [_item(
        ReconstructionType="3D", ReconstructionAlgorithm="OSEM",
        IterativeReconstructionMethod="YES", ReconstructionDiameter="192",
        NumberOfIterations=3, NumberOfSubsets=21,
    )]  # fmt: skip


def _mr_groups(shared: Dataset, frame_type: Dataset) -> None:
    """PS3.3 C.8.13.5."""
    frame_type.ComplexImageComponent = "MAGNITUDE"
    frame_type.AcquisitionContrast = "FLUID_ATTENUATED"
    shared.MRImageFrameTypeSequence = [frame_type]
    shared.MREchoSequence = [_item(EffectiveEchoTime=90.0)]
    shared.MRTimingAndRelatedParametersSequence = [_item(
        RepetitionTime="9000", FlipAngle="90", EchoTrainLength=1, RFEchoTrainLength=1,
        GradientEchoTrainLength=0, GradientOutputType="DB_DT", GradientOutput=1.0,
        SpecificAbsorptionRateSequence=[_item(
            SpecificAbsorptionRateDefinition="IEC_HEAD", SpecificAbsorptionRateValue=1.0)],
        OperatingModeSequence=[_item(
            OperatingModeType="STATIC FIELD", OperatingMode="IEC_NORMAL")],
    )]  # fmt: skip
    shared.MRAveragesSequence = [_item(NumberOfAverages=1.0)]
    shared.MRFOVGeometrySequence = [_item(
        InPlanePhaseEncodingDirection="ROW", MRAcquisitionFrequencyEncodingSteps=28,
        MRAcquisitionPhaseEncodingStepsInPlane=32, PercentSampling=100.0,
        PercentPhaseFieldOfView=100.0,
    )]  # fmt: skip
    shared.MRImagingModifierSequence = [_item(
        MagnetizationTransfer="NONE", BloodSignalNulling="NO", Tagging="NONE",
        TransmitterFrequency=127.7, PixelBandwidth="200",
    )]  # fmt: skip
    shared.MRModifierSequence = [_item(
        InversionRecovery="YES", InversionTimes=2500.0, FlowCompensation="NONE", Spoiling="NONE",
        T2Preparation="NO", SpectrallySelectedExcitation="NONE", SpatialPresaturation="NONE",
        PartialFourier="NO", ParallelAcquisition="NO",
    )]  # fmt: skip
    shared.MRReceiveCoilSequence = [_item(
        ReceiveCoilName="head", ReceiveCoilManufacturerName="", ReceiveCoilType="VOLUME",
        QuadratureReceiveCoil="YES",
    )]  # fmt: skip
    shared.MRTransmitCoilSequence = [_item(
        TransmitCoilName="body", TransmitCoilManufacturerName="", TransmitCoilType="BODY"
    )]  # fmt: skip


# --- mosaic ----------------------------------------------------------------------------------


def mosaic(planes: Stack, who: Who, *, csa: bool = True, key: int = 0) -> Dataset:
    """All planes as tiles of one square picture, as Siemens stores EPI.

    The position is that of the corner of a plane as large as the whole picture, around the
    centre of the first plane; how many tiles there are stands in a private header only.
    """
    columns, rows, count = planes.values.shape
    side = math.ceil(math.sqrt(count))
    picture = np.zeros((columns * side, rows * side), np.int64)
    for plane in range(count):
        at_row, at_column = divmod(plane, side)
        picture[
            at_column * columns : (at_column + 1) * columns, at_row * rows : (at_row + 1) * rows
        ] = planes.values[..., plane]
    d = header(who, "MR", MRImageStorage, ("mosaic", key))
    d.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    d.Manufacturer, d.ManufacturerModelName = "SIEMENS", "Prisma"
    d.ScanningSequence, d.SequenceVariant, d.ScanOptions = "EP", "SK", "FS"
    d.MRAcquisitionType, d.RepetitionTime, d.EchoTime = "2D", "2000", "30"
    d.EchoTrainLength, d.MagneticFieldStrength = 1, "3"
    d.FrameOfReferenceUID = who.uid(who.study, "frame of reference")
    d.InstanceNumber = d.AcquisitionNumber = key + 1
    d.AcquisitionTime = d.ContentTime = f"10{15 + key:02d}00"
    d.PatientPosition, d.Laterality, d.PositionReferenceIndicator = "HFS", "", ""
    d.PixelSpacing = [_text(planes.spacing[1]), _text(planes.spacing[0])]
    d.SliceThickness = d.SpacingBetweenSlices = _text(planes.thickness)
    d.ImageOrientationPatient = [_text(v) for v in (*planes.row, *planes.column)]
    corner = (
        planes.origins[0]
        - planes.row * planes.spacing[0] * columns * (side - 1) / 2
        - planes.column * planes.spacing[1] * rows * (side - 1) / 2
    )
    d.ImagePositionPatient = [_text(v) for v in corner]
    pixels(d, picture, bits=12)
    if csa:
        step = planes.origins[1] - planes.origins[0]
        normal = step / np.linalg.norm(step)
        block = d.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        block.add_new(0x08, "CS", "IMAGE NUM 4")
        block.add_new(0x09, "LO", "20200102")
        block.add_new(0x10, "OB", _csa({
            "NumberOfImagesInMosaic": ("US", [str(count)]),
            "SliceNormalVector": ("FD", [f"{v:.8f}" for v in normal]),
            "ProtocolSliceNumber": ("IS", ["0"]),
            "MosaicRefAcqTimes": ("FD", [f"{100.0 * n:.8f}" for n in range(count)]),
            "PhaseEncodingDirectionPositive": ("IS", ["1"]),
            "B_value": ("IS", ["0"]),
        }))  # fmt: skip
    return d


def _csa(tags: dict[str, tuple[str, list[str]]]) -> bytes:
    """Siemens' CSA header, second edition: a count, then names with lists of padded texts."""
    out = b"SV10\x04\x03\x02\x01" + struct.pack("<II", len(tags), 77)
    for name, (vr, values) in tags.items():
        items = max(6, len(values))  # Siemens writes at least six, the later ones empty
        out += struct.pack("<64si4siii", name.encode(), len(values), vr.encode(), 0, items, 77)
        for value in values + [""] * (items - len(values)):
            text = value.encode() + b"\0" if value else b""
            out += struct.pack("<4i", len(text), len(text), 77, len(text))
            out += text + b"\0" * (-len(text) % 4)
    return out + b"\0" * (-len(out) % 2)
